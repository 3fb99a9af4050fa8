"""Differentiate the last few steps."""

from dataclasses import dataclass, field

from ..unrolling.unroll import Unroll
from .store import Store
from .sweep import Backward, Tape


@dataclass(frozen=True)
class Truncate(Backward):
    """For a K whose early steps hardly matter: only the last ``steps`` of K are differentiated, the others cost one.

    An approximation, unless ``steps`` is K: θ^{K-n} counts as a constant.

    Args:
        steps: n >= 1, at most K.
        backward: how these are differentiated.
    """

    steps: int
    backward: Backward = field(default_factory=Store)
    second_order: bool = field(init=False, repr=False, compare=False)
    rewinds: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"Truncate(steps={self.steps!r}). Pass a whole number >= 1.")
        if not isinstance(self.backward, Backward):
            raise TypeError(f"Truncate(backward={self.backward!r:.200}). Pass an instance, such as Recompute().")
        # The dataclass is frozen, which these two are set around.
        object.__setattr__(self, "second_order", self.backward.second_order)
        object.__setattr__(self, "rewinds", self.backward.rewinds)

    def tape(self, unroll: Unroll, first: int, steps: int) -> Tape:
        """The inner tape, which differentiates the last steps."""
        if self.steps > steps:
            raise ValueError(f"Truncate(steps={self.steps}) of {steps} steps. Pass at most {steps}, or a larger K.")
        return self.backward.tape(unroll, max(first, steps - self.steps), steps)
