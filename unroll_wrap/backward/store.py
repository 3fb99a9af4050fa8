"""Keep every step's graph."""

from typing import Any

from ..rules.block import Block
from ..unroll import Point, Step, Unroll


class Store:
    """The default: about three plain gradients' time a step, and the activations of all K steps in memory."""

    def step(self, unroll: Unroll, point: Point, k: int) -> tuple[Point, Any]:
        """One inner step, and the whole of it as the record."""
        return unroll.step(point, k, differentiable=True)

    def pullback(self, unroll: Unroll, record: Step, cotangent: list[Block], first: bool) -> list[Block] | None:
        """The recorded step's own pullback."""
        return unroll.pullback(record, cotangent, first)

    def __repr__(self) -> str:
        """``Store()``."""
        return "Store()"
