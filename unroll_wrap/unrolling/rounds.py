"""Look-aheads in which several players move: an inner step is one update of one player, or one of each at once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..call.sequence import Move
from ..evaluation.evaluation import Evaluation
from ..optimizers.block import Block, unpack
from ..optimizers.update import Update
from .one_process import Grads
from .step import Point
from .step_gradients import gradients, pull, refuse_stale
from .unroll import Unroll


class Part(NamedTuple):
    """One player's part of an inner step: the run of its loss, and the gradients of the parameters that it moves."""

    start: Point
    evaluation: Evaluation
    grads: Grads


class Round(NamedTuple):
    """One inner step: the parts of all players that move in it, and the update that they make together."""

    parts: list[Part]
    update: Update
    averages: None = None  # A sequence does not average over processes.

    @property
    def name(self) -> str:
        """What messages call the losses of this step."""
        return " + ".join(part.evaluation.name for part in self.parts)

    @property
    def grads(self) -> Grads:
        """The gradients of all players, one after the other."""
        return [g for part in self.parts for g in part.grads]

    @property
    def loss(self) -> Tensor:
        """The sum of the players' losses, without graph."""
        return torch.stack([part.evaluation.loss.detach().reshape(()) for part in self.parts]).sum()


@dataclass
class Rounds(Unroll):
    """An unroll whose inner steps belong to several players.

    The parameters of all players are one list. In a player's update the gradients of the others' parameters are None,
    so that their optimizers do not move them. Its derivative passes to the parameters of all players.
    """

    moves: Sequence[Sequence[Move]] = ()  # For each inner step of one round, the moves that are made at the same point.
    # Positions of the parameters of the player that minimises the returned loss; empty if it does not move.
    asker: frozenset[int] = frozenset()
    # Whether every move, and the returned loss, finds its own player at the start, and the others where they have got
    # to. Then there is no pullback.
    anew: bool = False
    start: Point | None = None  # θ^0.
    _taken: int = field(default=0, init=False)

    @property
    def through_start(self) -> bool:  # type: ignore[override]
        """Whether the derivative of the returned loss passes by the start of a player."""
        return bool(self.asker)

    def step(  # type: ignore[override]
        self, point: Point, k: int, batch: tuple[Any, ...], differentiable: bool, averages: None = None
    ) -> tuple[Point, Round]:
        """Return the point after inner step k, and its record; see ``Unroll.step``."""
        parts: list[Part] = []
        first = k == self._taken  # Or else the step is replayed.
        together = self.moves[k % len(self.moves)]
        self.start = self.start or point
        if self.anew:
            point = self._anew(point, together[0].mine)
        for move in together:
            if parts:
                self._note()
                buffers, contents = self.evaluate.swap.after_loss()
                point = point._replace(buffers=buffers, contents=contents)
            parts.append(self._part(point, k * len(together) + len(parts), batch, move, differentiable, first))
        self._taken += first
        grads: list[Tensor | None] = [None] * len(self.evaluate.owned)
        for move, part in zip(together, parts, strict=True):
            for i in move.mine:
                grads[i] = part.grads[i]
        moving = frozenset().union(*(move.mine for move in together))
        update, following = self.update(point, grads, differentiable, moving)
        return following, Round(parts, update)

    def _part(
        self, point: Point, k: int, batch: tuple[Any, ...], move: Move, differentiable: bool, first: bool
    ) -> Part:
        name = self.name_of(k)
        evaluation = self.evaluate(name, move.loss, point.params(), point.buffers, batch, contents=point.contents)
        # The derivative by the start of the asker would lack what passes by that tensor.
        refuse_stale(evaluation, evaluation.stale and self.through_start)
        if first:
            self.d_losses.append(evaluation.loss.detach())
            self._check_frozen(evaluation, move.mine)
            self._check_guarded(evaluation, move.mine)
        found, _ = gradients(self.evaluate, evaluation, mine=move.mine, create_graph=differentiable)
        return Part(point, evaluation, found)

    def _note(self, batch: tuple[Any, ...] | None = None) -> None:
        # The steps of a round share its batch.
        super()._note(None if self._taken % len(self.moves) else batch)

    def name_of(self, k: int) -> str:
        """Return what messages call the loss that is the k-th of ``d_losses``."""
        flat = [move.name for together in self.moves for move in together]
        return f"{flat[k % len(flat)]} in round {k // len(flat)}"

    def _check_frozen(self, evaluation: Evaluation, mine: frozenset[int] | None = None) -> None:
        self.moved |= self.asker
        super()._check_frozen(evaluation, mine)

    def pullback(self, step: Round, cotangent: list[Block], first: bool) -> list[Block] | None:  # type: ignore[override]
        """Pull the cotangent of a step's result back to its start, and add the user's part to ``sensitivity``."""
        first = first and not self.asker
        bars, of_old = step.update.pullback(cotangent)
        sums: list[Tensor | None] = [None] * len(bars)
        for part in step.parts:
            own = [bar if g is not None else None for g, bar in zip(part.grads, bars, strict=True)]
            found = pull(self, part.evaluation, part.start, part.grads, own, first)
            self.sensitivity.second_term |= any(g is not None for i, g in enumerate(found) if i in self.asker)
            for i, g in enumerate(found):
                if g is not None:
                    so_far = sums[i]
                    sums[i] = g if so_far is None else so_far + g
        return None if first else step.update.cotangent(of_old, sums)

    def generator_term(self, point: Point, weight: float) -> tuple[Tensor, list[Block]]:
        """Return ``weight`` times the returned loss at a point, and the cotangent of the point's tensors."""
        value, cotangent = super().generator_term(self._anew(point, self.asker) if self.anew else point, weight)
        self.sensitivity.first_term |= any(
            b.params is not None for b in cotangent if not self.asker.isdisjoint(b.index)
        )
        return value, cotangent

    def finish(self, cotangents: Sequence[list[Block]]) -> None:
        """Add the derivative by the start of the player that minimises the returned loss."""
        for cotangent in cotangents:
            for block in cotangent:
                if block.params is not None and not self.asker.isdisjoint(block.index):
                    live = [self.evaluate.owned[i] for i in block.index]
                    self.sensitivity.add(live, unpack(block.params, block.shapes))

    def _anew(self, point: Point, mine: frozenset[int]) -> Point:
        """Return the point with the blocks of one player replaced by those of the start."""
        start = self.start or point
        others = [b for b in point.blocks if mine.isdisjoint(b.index)]
        return point._replace(blocks=[*others, *(b for b in start.blocks if not mine.isdisjoint(b.index))])
