"""Differentiate the last few steps."""

from dataclasses import dataclass, field

from ..rules.block import Block
from ..unroll import Point, Unroll
from .store import Store
from .sweep import Backward, Tape


@dataclass(frozen=True)
class Truncate:
    """For a K whose early steps hardly matter: only the last ``steps`` of K are differentiated, the others cost one.

    An approximation, unless ``steps`` is K: θ^{K-n} counts as a constant.

    Args:
        steps: n >= 1, at most K.
        backward: how these are differentiated.
    """

    steps: int
    backward: Backward = field(default_factory=Store)

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"Truncate(steps={self.steps!r}). Pass a whole number >= 1.")
        if isinstance(self.backward, type) or not hasattr(self.backward, "tape"):
            raise TypeError(f"Truncate(backward={self.backward!r:.200}). Pass an instance, such as Recompute().")

    @property
    def twice(self) -> bool:
        """Whether gradients of D's are differentiated."""
        return self.backward.twice

    def tape(self, unroll: Unroll, first: int, steps: int) -> Tape:
        """The inner tape, for the last steps."""
        start = steps - self.steps
        if start < first:
            raise ValueError(
                f"Truncate(steps={self.steps}) of {steps - first} steps. Pass at most {steps - first}, or a larger K."
            )
        return _Tail(unroll, start, self.backward.tape(unroll, start, steps))


class _Tail:
    def __init__(self, unroll: Unroll, start: int, tape: Tape) -> None:
        self._unroll = unroll
        self.first = start
        self._tape = tape

    def step(self, point: Point, k: int) -> Point:
        if k >= self.first:
            return self._tape.step(point, k)
        return self._unroll.step(point, k, self._unroll.inner_batch(k), differentiable=False)[0]

    def pullback(self, k: int, cotangent: list[Block]) -> list[Block] | None:
        return self._tape.pullback(k, cotangent)
