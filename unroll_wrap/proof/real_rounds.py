"""Take K real rounds of the updates of several players, and put everything back."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .. import guards
from ..evaluation.checkpoints import in_place
from ..evaluation.swap import Swap
from ..live.snapshot import Snapshot
from .real_steps import Around, RealSteps, Shift
from .training import modules_of, stepping


class Player:
    """One player of a sequence, with what its own training step consists of: the parameters, and whoever steps them."""

    def __init__(self, player: Any, optimizer: Any) -> None:
        roots = list(player.values()) if isinstance(player, dict) else player
        roots = roots if isinstance(roots, (list, tuple)) else [roots]
        self.modules: list[nn.Module] = list(roots)
        self.steppers = stepping(optimizer)
        held = {id(p) for o in Snapshot(self.steppers).objects() if hasattr(o, "param_groups") for p in _params(o)}
        self.params = [p for p in _distinct(self.modules) if id(p) in held]

    def now(self) -> Snapshot:
        """Return what the player is now, which can be restored as often as needed."""
        return Snapshot([*self.params, *self.steppers])


class RealRounds(RealSteps):
    """A computation of the returned loss after K real rounds; see ``RealSteps`` for the arguments."""

    def run(self, shifted: Shift = nullcontext, around: Around = nullcontext) -> float:
        """Return the loss after the last round, or its weighted sum; see ``RealSteps.run`` for the arguments."""
        self.values = []
        unrolled, steps = self._unrolled, len(self._inner)
        weights = self.weights(steps)
        again = nullcontext() if around is nullcontext else in_place(Swap(modules_of(unrolled), []))
        players = [Player(update.player, update.optimizer) for update in unrolled.updates]
        losses = [update.loss for update in unrolled.updates]
        roots: list[Any] = [*(m for one in players for m in one.modules), *(s for one in players for s in one.steppers)]
        with (
            Snapshot([*roots, losses, self._g_loss, self._batch, self._inner, self._kwargs]),
            guards.unrolling(),
            again,
        ):
            total = 0.0
            # One shift for all rounds, because the steps of the player that is moved go on from where it is.
            with nullcontext() if self._constant else shifted():
                start = [player.now() for player in players]
                for k in range(steps + 1):
                    if k in weights:
                        total += weights[k] * self._returned(players, start, shifted, around)
                    if k < steps:
                        self._round(players, start, losses, self._inner[k], around)
                return total

    def _returned(self, players: Sequence[Player], start: Sequence[Snapshot], shifted: Shift, around: Around) -> float:
        asked = {id(m) for m in self._unrolled.asker}
        with Snapshot([player.modules for player in players]):
            if self._unrolled.order == "level-k":
                for player, before in zip(players, start, strict=True):
                    if id(player.modules[0]) in asked:
                        before.restore()
            with shifted() if self._constant else nullcontext():
                return self._evaluate("loss", self._g_loss, self._batch, around("loss")).item()

    def _round(
        self, players: Sequence[Player], start: Sequence[Snapshot], losses: Sequence[Any], batch: Any, around: Around
    ) -> None:
        order = self._unrolled.order
        grads: list[list[Tensor | None]] = []
        for i, (player, loss) in enumerate(zip(players, losses, strict=True)):
            if order == "level-k":
                start[i].restore()
            with _moving(player):
                self._evaluate(f"updates[{i}].loss", loss, batch, around("update")).backward(inputs=player.params)
                grads.append([p.grad for p in player.params])
            if order != "simultaneous":
                _step(player, grads[i])
        if order == "simultaneous":
            for player, found in zip(players, grads, strict=True):
                _step(player, found)


@contextmanager
def _moving(player: Player) -> Iterator[None]:
    """Give the player's parameters the gradients that their loop finds before ``backward()``: zeros, or none."""
    for p in player.params:
        p.requires_grad_(True)
        p.grad = torch.zeros_like(p) if p.grad is not None and not p.grad.any() else None
    yield


def _step(player: Player, grads: Sequence[Tensor | None]) -> None:
    for p, g in zip(player.params, grads, strict=True):
        p.grad = g
    for stepper in player.steppers:
        stepper.step()


def _params(optimizer: Any) -> Iterator[Tensor]:
    return (p for group in optimizer.param_groups for p in group["params"])


def _distinct(modules: Sequence[nn.Module]) -> list[Tensor]:
    return list({id(p): p for m in modules for p in m.parameters()}.values())


def real_steps(unrolled: Any, *arguments: Any) -> RealSteps:
    """Return the real steps of a loss: rounds of several players for a sequence, and those of one player otherwise."""
    kind = RealRounds if hasattr(unrolled, "updates") else RealSteps
    return kind(unrolled, *arguments)
