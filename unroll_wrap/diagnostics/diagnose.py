"""What unrolling does in the user's own loop, at this moment of training."""

import copy
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..call.mistakes import check_examined
from ..live.random_state import EveryState
from ..loss import SecondTermMissing, UnrolledGeneratorLoss
from .differentiated import NOTHING, Inputs
from .peak_memory import PeakMemory


@dataclass(frozen=True)
class Diagnosis:
    """What ``diagnose`` measured; norms are of the gradient with respect to ``fake``.

    Attributes:
        steps: K.
        d_losses: along the inner steps.
        g_loss: after them.
        first_term: norm of the first term of Eq. 12.
        second_term: norm of the second.
        share: of the second term in the sum of both norms.
        cosine: between the unrolled gradient and the one without unrolling.
        ratio: of their norms.
        seconds: that the call took.
        peak_bytes: most memory that tensors of the call held at one time.
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

    @property
    def advice(self) -> str:
        """One sentence."""
        moved = abs(self.d_losses[-1] - self.d_losses[0]) if len(self.d_losses) > 1 else float("nan")
        if moved < 1e-4 * max(abs(self.d_losses[0]), 1e-12):
            return "d_loss hardly moves along the inner steps: unrolling does nothing at this learning rate of D."
        if self.d_losses[-1] > self.d_losses[0]:
            return "d_loss grows along the inner steps: D's learning rate is too high for this batch."
        if self.share < 0.01 and self.cosine > 0.99:
            return "Both terms agree with the plain gradient: unrolling does nothing here."
        if self.share < 0.01:
            return "The second term is below 1 %: stop_gradient=True would do the same at a third of the cost."
        if self.cosine > 0.99 and 0.9 < self.ratio < 1.1:
            return "The gradient is nearly the plain one: unrolling changes little at this moment."
        return f"The second term is {self.share:.1%} of the sum of both: unrolling matters here."

    def scalars(self, prefix: str = "unroll/") -> dict[str, float]:
        """A flat dict for a logger."""
        flat = {k: float(v) for k, v in asdict(self).items() if k != "d_losses"}
        flat |= {"d_loss_first": self.d_losses[0], "d_loss_last": self.d_losses[-1]} if self.d_losses else {}
        return {prefix + k: v for k, v in flat.items()}

    def plot(self, ax: Any = None) -> Any:
        """``d_loss`` along the inner steps, on a matplotlib axis."""
        if ax is None:
            from matplotlib import pyplot

            ax = pyplot.subplots()[1]
        ax.plot(range(len(self.d_losses)), self.d_losses, marker="o")
        ax.set(xlabel="inner step", ylabel="d_loss", title=f"second term {self.share:.1%}, cosine {self.cosine:.2f}")
        return ax

    def __str__(self) -> str:
        """A short report."""
        return "\n".join([
            f"unroll_wrap.diagnose: K = {self.steps}, {self.seconds:.3g} s, {self.peak_bytes / 1e6:.3g} MB at its peak",
            f"  d_loss       {' '.join(f'{v:.4g}' for v in self.d_losses)}",
            f"  both terms   of norm {self.first_term:.3g} and {self.second_term:.3g} (second: {self.share:.1%})",
            f"  against K=0  cosine {self.cosine:.3f}, norm x {self.ratio:.3g}",
            f"  {self.advice}",
        ])


def diagnose(
    unrolled: UnrolledGeneratorLoss, *batch: Any, wrt: Sequence[Tensor] | Tensor | None = None, **options: Any
) -> Diagnosis:
    """Four calls from the same state: unrolled (twice, for time and for memory), its first term alone, and K = 0.

    Args:
        unrolled: the loss, with steps >= 1.
        *batch: as for a call.
        wrt: as in ``verify``.
        **options: as for a call.

    Returns:
        What was measured; ``print`` it, ``plot`` it, or log its ``scalars``.

    Raises:
        ValueError: steps is 0, or there is nothing to differentiate with respect to.
    """
    check_examined(unrolled, "diagnose", batch)
    d_loss, g_loss = unrolled.losses(options.pop("d_loss", None), options.pop("g_loss", None))
    steps, batches = unrolled.plan(options.pop("steps", None), options.pop("resample", None))
    if steps == 0:
        raise ValueError("steps is 0: nothing is unrolled. Pass diagnose(..., steps=5), say.")
    modules, _, owned = unrolled.parts()
    inputs = Inputs(
        wrt, (d_loss, g_loss), batch, options, [batches(k) for k in range(steps)] if batches else [], modules
    )
    if not inputs.tensors:
        raise ValueError(NOTHING)
    state = EveryState([*inputs.tensors, *owned], inputs.captured)
    first_alone = copy.copy(unrolled)
    first_alone.stop_gradient = True

    def gradient(loss: UnrolledGeneratorLoss, steps: int) -> tuple[float, list[Tensor], Tensor]:
        with state.replayed(), warnings.catch_warnings():
            # Said by the call itself, and here by the second term's norm.
            warnings.simplefilter("ignore", SecondTermMissing)
            value, d_losses = loss.watched(
                *inputs.batch,
                d_loss=d_loss,
                g_loss=g_loss,
                steps=steps,
                resample=inputs.inner[:steps] or None,
                **inputs.kwargs,
            )
            return value.item(), d_losses, torch.cat([g.reshape(-1).cpu().double() for g in inputs.gradient(value)])

    *_, plain = gradient(first_alone, 0)
    with PeakMemory() as memory:
        gradient(unrolled, steps)
    try:
        *_, first = gradient(first_alone, steps)
    except ValueError:
        # The whole call went well, so it is g_loss alone that does not depend on the generator.
        first = torch.zeros_like(plain)
    began = time.perf_counter()
    value, d_losses, total = gradient(unrolled, steps)
    seconds = time.perf_counter() - began
    a, b = float(first.norm()), float((total - first).norm())
    lengths = float(total.norm()) * float(plain.norm())
    return Diagnosis(
        steps=steps,
        d_losses=[v.item() for v in d_losses],
        g_loss=value,
        first_term=a,
        second_term=b,
        share=b / (a + b) if a + b else 0.0,
        cosine=float(total @ plain) / lengths if lengths else float("nan"),
        ratio=float(total.norm() / plain.norm()) if plain.norm() else float("inf"),
        seconds=seconds,
        peak_bytes=memory.peak,
    )
