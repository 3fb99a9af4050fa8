"""``Truncate``: differentiate only the last few steps."""

from dataclasses import dataclass, field

from ..unrolling.unroll import Unroll
from .store import Store
from .sweep import Backward, Tape, rewinds


@dataclass(frozen=True)
class Truncate:
    """Differentiate only the last n of K steps, for a K whose early steps hardly matter: these cost one gradient each.

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

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"Truncate(steps={self.steps!r}). Pass a whole number >= 1.")
        if isinstance(self.backward, type) or not hasattr(self.backward, "tape"):
            raise TypeError(f"Truncate(backward={self.backward!r:.200}). Pass an instance, such as Recompute().")

    @property
    def second_order(self) -> bool:
        """Whether gradients of ``d_loss`` are differentiated."""
        return self.backward.second_order

    @property
    def rewinds(self) -> bool:
        """Whether losses run again at earlier points."""
        return rewinds(self.backward)

    def tape(self, unroll: Unroll, first: int, steps: int) -> Tape:
        """Return the tape of ``backward``, which differentiates the last steps."""
        if self.steps > steps:
            raise ValueError(f"Truncate(steps={self.steps}) of {steps} steps. Pass at most {steps}, or a larger K.")
        return self.backward.tape(unroll, max(first, steps - self.steps), steps)
