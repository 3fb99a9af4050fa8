"""The measurements of ``diagnose``, and the advice that follows from them."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from ..call.names import GENERATOR, Names

# A gradient that is longer or shorter than the plain one by this factor trains nothing.
_IMPLAUSIBLE = 100.0
SPREAD = ("share", "cosine", "ratio")


@dataclass(frozen=True)
class Diagnosis:
    """The measurements of ``diagnose``. All norms are of gradients with respect to ``fake``, or to ``wrt`` if given.

    Attributes:
        steps: K, the number of inner steps.
        d_losses: ``d_loss`` at each inner step.
        g_loss: ``g_loss`` after the inner steps.
        first_term: the norm of the first term of Eq. 12.
        second_term: the norm of the second term of Eq. 12.
        share: second_term / (first_term + second_term); 0 if both are 0.
        cosine: the cosine of the angle between the unrolled gradient and the one at K = 0; 0 if one of them is 0.
        ratio: the norm of the unrolled gradient divided by that of the one at K = 0.
        seconds: the duration of the unrolled call with its gradient, in seconds.
        peak_bytes: the most memory that tensors of the call held at one time, in bytes.
        growths: the last ``d_loss`` minus the first, for the given batch and for each batch drawn from its rows; NaN
            if several players move, each by a loss of its own.
        spread: the standard deviations of share, cosine and ratio over these batches, by name.
        names: what the report calls the players and their losses.
    """

    steps: int
    d_losses: list[float]
    g_loss: float
    first_term: float
    second_term: float
    share: float
    cosine: float
    ratio: float
    seconds: float
    peak_bytes: int
    growths: list[float] = field(default_factory=list)
    spread: dict[str, float] = field(default_factory=dict)
    names: Names = GENERATOR

    @property
    def advice(self) -> str:
        """Return one or two sentences on what the direction and the size of the gradient mean."""
        who, moves = self.names.short, self.names.player_loss
        same, like = self.cosine > 0.99, 0.9 < self.ratio < 1.1
        size = max(abs(self.d_losses[0]), 1e-12) if self.d_losses else 1.0
        growths = self.growths or [self.d_losses[-1] - self.d_losses[0] if self.d_losses else 0.0]
        if self.first_term + self.second_term == 0:
            return f"The gradient is 0: the losses are flat here, or do not use {self.names.asker}."
        # All batches have to agree, because label noise makes the loss grow for one batch and fall for another.
        if min(growths) > 0.02 * size:
            return f"{moves} grows along the inner steps: {who}'s learning rate is too high for this batch."
        if math.isfinite(self.ratio) and not 1 / _IMPLAUSIBLE < self.ratio < _IMPLAUSIBLE:
            return (
                f"The gradient is {self.ratio:.3g} times the plain one, which is implausible: an optimizer from empty "
                f"state, or a learning rate of {who}'s beyond what it can bear. Step {who} once before, lower the "
                "rate, or take fewer steps."
            )
        if len(self.d_losses) > 1 and max(map(abs, growths)) < 1e-4 * size:
            return f"{moves} hardly moves along the inner steps: unrolling does nothing at this learning rate of {who}."
        if same and like:
            return "The gradient is the plain one, in direction and size: unrolling changes little at this moment."
        if not self.second_term:
            return (
                f"The first term is all there is, as with stop_gradient=True, at {self.ratio:.3g} times the plain norm "
                f"and cosine {self.cosine:.2f}."
            )
        if self.share < 0.01:
            return (
                f"The second term is below 1 %, and the first has {self.ratio:.3g} times the plain norm at cosine "
                f"{self.cosine:.2f}: stop_gradient=True would do the same at a third of the cost."
            )
        if same:
            return (
                f"The gradient points where the plain one does, at {self.ratio:.3g} times its norm: that changes the "
                "step of SGD, and little for an optimizer that divides by the norm."
            )
        return (
            f"The second term is {self.share:.1%} of the sum of both, and the gradient turns by "
            f"{math.degrees(math.acos(max(-1.0, self.cosine))):.0f} degrees: unrolling matters here."
        )

    def scalars(self, prefix: str = "unroll/") -> dict[str, float]:
        """Return the numbers as a flat dict for a logger, with ``prefix`` before each name."""
        flat = {k: float(v) for k, v in asdict(self).items() if k not in ("d_losses", "growths", "spread", "names")}
        flat |= {"d_loss_first": self.d_losses[0], "d_loss_last": self.d_losses[-1]} if self.d_losses else {}
        flat |= {f"{k}_spread": v for k, v in self.spread.items()}
        return {prefix + k: v for k, v in flat.items()}

    def plot(self, ax: Any = None) -> Any:
        """Plot ``d_loss`` at each inner step on a matplotlib axis, a new one if None, and return the axis."""
        if ax is None:
            from matplotlib import pyplot

            ax = pyplot.subplots()[1]
        ax.plot(range(len(self.d_losses)), self.d_losses, marker="o")
        title = f"second term {self.share:.1%}, cosine {self.cosine:.2f}"
        ax.set(xlabel="inner step", ylabel=self.names.player_loss, title=title)
        return ax

    def __str__(self) -> str:
        """Return a short report."""
        around = {k: f" ± {v:.1%}" if k == "share" else f" ± {v:.2g}" for k, v in self.spread.items()}
        return "\n".join([
            f"unroll_wrap.diagnose: K = {self.steps}, {self.seconds:.3g} s, {self.peak_bytes / 1e6:.3g} MB at its peak",
            f"  {self.names.player_loss:<11}  {' '.join(f'{v:.4g}' for v in self.d_losses)} (at each step)",
            f"  both terms   of norm {self.first_term:.3g} and {self.second_term:.3g} "
            f"(second: {self.share:.1%}{around.get('share', '')})",
            f"  against K=0  cosine {self.cosine:.3f}{around.get('cosine', '')}, "
            f"norm x {self.ratio:.3g}{around.get('ratio', '')}",
            f"  {self.advice}",
        ])
