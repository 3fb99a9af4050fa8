"""Differentiate the last few steps."""

from dataclasses import dataclass, field

from ..unrolling.unroll import Unroll
from .store import Store
from .sweep import Backward, Tape, rewinds


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
    def second_order(self) -> bool:
        """Whether gradients of D's are differentiated."""
        return self.backward.second_order

    @property
    def rewinds(self) -> bool:
        """Whether losses run at points that training has passed already."""
        return rewinds(self.backward)

    def tape(self, unroll: Unroll, first: int, steps: int) -> Tape:
        """The inner tape, which differentiates the last steps."""
        if self.steps > steps:
            raise ValueError(f"Truncate(steps={self.steps}) of {steps} steps. Pass at most {steps}, or a larger K.")
        return self.backward.tape(unroll, max(first, steps - self.steps), steps)
