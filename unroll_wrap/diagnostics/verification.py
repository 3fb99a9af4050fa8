"""The result of ``verify``."""

import math
from dataclasses import dataclass, field

from .directional_derivative import Slope


@dataclass(frozen=True)
class Verification:
    """The result of ``verify``, which is true if value and derivative agree.

    Attributes:
        value: the value of the unrolled loss; NaN if a problem was found before it was computed.
        real_value: ``g_loss`` after K real steps of the real optimizer.
        tolerance: how far apart rounding may take the two values.
        slopes: the derivatives along two directions.
        problems: what is wrong, in sentences; empty if all agrees.
        cuts: where a loss of the user's detaches what depends on D or on fake. The derivative stops there, as the user
            intends, so these tensors are held constant in the differences too.
        notes: what else a reader of the numbers should know.
    """

    value: float
    real_value: float
    tolerance: float
    slopes: list[Slope] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    cuts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Return whether value and derivative agree."""
        return not self.problems

    def __bool__(self) -> bool:
        """Return ``passed``, for ``assert verify(...)``."""
        return self.passed

    def __str__(self) -> str:
        """Return a short report."""
        lines = [f"unroll_wrap.verify: {'passed' if self.passed else 'FAILED'}"]
        lines += [f"  problem: {problem}" for problem in self.problems]
        if not math.isnan(self.value):
            lines.append(
                f"  value       {self.value:.9g}, after real steps {self.real_value:.9g} "
                f"(apart {abs(self.value - self.real_value):.1e}, allowed {self.tolerance:.1e})"
            )
        lines += [
            f"  derivative  {s.surrogate:.6g}, by differences {s.difference:.6g} "
            f"(apart {s.apart:.1e}, allowed {s.tolerance:.1e})"
            for s in self.slopes
        ]
        for title, items in (("cut", self.cuts), ("note", self.notes)):
            lines += [f"  {title}: {item}" for item in items]
        return "\n".join(lines)
