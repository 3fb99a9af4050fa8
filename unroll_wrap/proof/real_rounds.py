"""Take K real rounds of the updates of several players, and put everything back."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from torch import Tensor

from .. import guards
from ..evaluation.checkpoints import in_place
from ..evaluation.swap import Swap
from ..live.snapshot import Snapshot
from .real_steps import Around, RealSteps, Shift
from .training import clear, modules_of, moved_by, stepping, zeros_in


class Player:
    """One player of a sequence, with what its own training step consists of: loss, parameters, and who steps them."""

    def __init__(self, update: Any) -> None:
        self.loss = update.loss
        self.modules = modules_of(update)
        self.steppers = stepping(update.optimizer)
        self.params = list(moved_by(self.steppers, update).values())
        self.zeros = zeros_in(self.params)

    def now(self) -> Snapshot:
        """Return what the player is now, which can be restored as often as needed."""
        return Snapshot([*self.params, *self.steppers])


class RealRounds(RealSteps):
    """A computation of the returned loss after K real rounds; see ``RealSteps`` for the arguments."""

    def run(self, shifted: Shift = nullcontext, around: Around = nullcontext) -> float:
        """Return the loss after the last round, or its weighted sum; see ``RealSteps.run`` for the arguments."""
        self.values = []
        unrolled, steps = self.unrolled, len(self.inner)
        weights = self.weights(steps)
        again = nullcontext() if around is nullcontext else in_place(Swap(modules_of(unrolled), []))
        players = [Player(update) for update in unrolled.updates]
        roots: list[Any] = [*(m for one in players for m in one.modules), *(s for one in players for s in one.steppers)]
        with (
            Snapshot([*roots, [one.loss for one in players], self.g_loss, self.batch, self.inner, self.kwargs]),
            guards.unrolling(),
            again,
        ):
            total = 0.0
            # One shift for all rounds, because the steps of the player that is moved go on from where it is.
            with nullcontext() if self.constant else shifted():
                start = [player.now() for player in players]
                for k in range(steps + 1):
                    if k in weights:
                        total += weights[k] * self._returned(players, start, shifted, around)
                    if k < steps:
                        self._round(players, start, self.inner[k], around)
                return total

    def _returned(self, players: Sequence[Player], start: Sequence[Snapshot], shifted: Shift, around: Around) -> float:
        asked = {id(p) for m in self.unrolled.asker for p in m.parameters()}
        with Snapshot([player.modules for player in players]):
            if self.unrolled.order == "level-k":
                for player, before in zip(players, start, strict=True):
                    if any(id(p) in asked for p in player.params):
                        before.restore()
            with shifted() if self.constant else nullcontext():
                return self._evaluate("loss", self.g_loss, self.batch, around("loss")).item()

    def _round(self, players: Sequence[Player], start: Sequence[Snapshot], batch: Any, around: Around) -> None:
        order = self.unrolled.order
        grads: list[list[Tensor | None]] = []
        for i, player in enumerate(players):
            if order == "level-k":
                start[i].restore()
            for p in player.params:
                p.requires_grad_(True)
            clear(player.steppers, player.params, player.zeros)
            value = self._evaluate(f"updates[{i}].loss", player.loss, batch, around("update"))
            value.backward(inputs=[p for p in player.params if p.requires_grad])
            grads.append([p.grad for p in player.params])
            if order != "simultaneous":
                _step(player, grads[i])
        if order == "simultaneous":
            for player, found in zip(players, grads, strict=True):
                _step(player, found)


def _step(player: Player, grads: Sequence[Tensor | None]) -> None:
    for p, g in zip(player.params, grads, strict=True):
        p.grad = g
    for stepper in player.steppers:
        stepper.step()


def real_steps(unrolled: Any, *arguments: Any) -> RealSteps:
    """Return the real steps of a loss: rounds of several players for a sequence, and those of one player otherwise."""
    kind = RealRounds if hasattr(unrolled, "updates") else RealSteps
    return kind(unrolled, *arguments)
