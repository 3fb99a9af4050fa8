"""``Store``: keep the graph of every step."""

from dataclasses import dataclass

from ..optimizers.block import Block
from ..unrolling.step import Point, Step
from ..unrolling.unroll import Unroll
from .sweep import Backward, Tape


@dataclass(frozen=True)
class Store(Backward):
    """The default: a step takes the time of about three gradients; memory holds the activations of all K steps."""

    second_order = True
    rewinds = False

    def tape(self, unroll: Unroll, first: int, steps: int) -> Tape:
        """Return a stack of the steps that are differentiated."""
        return _Stack(unroll, first)


class _Stack(Tape):
    def __init__(self, unroll: Unroll, first: int) -> None:
        self._unroll = unroll
        self.first = first
        self._steps: list[Step] = []

    def step(self, point: Point, k: int) -> Point:
        keep = k >= self.first
        point, step = self._unroll.step(*self._unroll.draw(point, k), differentiable=keep)
        if keep:
            self._steps.append(step)
        return point

    def pullback(self, k: int, cotangent: list[Block]) -> list[Block] | None:
        return self._unroll.pullback(self._steps.pop(), cotangent, first=k == self.first)
