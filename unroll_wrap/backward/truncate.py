"""``Truncate``: differentiate only the last few steps."""

from dataclasses import dataclass, field

from ..unrolling.unroll import Unroll
from .store import Store
from .sweep import Backward, Tape


@dataclass(frozen=True)
class Truncate(Backward):
    """Differentiate only the last n of K steps, for a K whose early steps hardly matter; those cost one gradient each.

    This is an approximation unless n is K: θ^{K-n} is taken for a constant.

    Args:
        steps: n >= 1, at most K.
        backward: the backward that differentiates these steps.

    Examples:
        >>> unroll_wrap.Truncate(2, unroll_wrap.Recompute())  # 2 steps, and one graph at a time in memory
        Truncate(steps=2, backward=Recompute(every=1))
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
        # A frozen dataclass refuses plain assignment.
        object.__setattr__(self, "second_order", self.backward.second_order)
        object.__setattr__(self, "rewinds", self.backward.rewinds)

    def tape(self, unroll: Unroll, first: int, steps: int) -> Tape:
        """Return the tape of ``backward``, which differentiates the last steps."""
        if self.steps > steps:
            raise ValueError(f"Truncate(steps={self.steps}) of {steps} steps. Pass at most {steps}, or a larger K.")
        return self.backward.tape(unroll, max(first, steps - self.steps), steps)
