"""What unrolling does in the user's own loop, at this moment of training."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .loss import UnrolledGeneratorLoss
from .replay import RandomState
from .verification import differentiable_inputs


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
        kept_bytes: of tensors kept for the backward pass.
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
    kept_bytes: int

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
        return f"The second term is {self.share:.0%} of the gradient: unrolling matters here."

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
        ax.set(xlabel="inner step", ylabel="d_loss", title=f"second term {self.share:.0%}, cosine {self.cosine:.2f}")
        return ax

    def __str__(self) -> str:
        """A short report."""
        return "\n".join([
            f"unroll_wrap.diagnose: K = {self.steps}, {self.seconds:.3g} s, {self.kept_bytes / 1e6:.3g} MB kept",
            f"  d_loss       {' '.join(f'{v:.4g}' for v in self.d_losses)}",
            f"  both terms   {self.first_term:.3g} and {self.second_term:.3g} (second: {self.share:.1%})",
            f"  against K=0  cosine {self.cosine:.3f}, norm x {self.ratio:.3g}",
            f"  {self.advice}",
        ])


def diagnose(
    unrolled: UnrolledGeneratorLoss, *batch: Any, wrt: Sequence[Tensor] | Tensor | None = None, **options: Any
) -> Diagnosis:
    """Three calls from the same state: unrolled, its first term alone, and without unrolling.

    Args:
        unrolled: the loss, with steps >= 1.
        *batch: as for a call.
        wrt: as in ``verify``.
        **options: as for a call.

    Returns:
        What was measured; ``print`` it, ``plot`` it, or log its ``scalars``.
    """
    d_loss, g_loss = options.pop("d_loss", None) or unrolled.d_loss, options.pop("g_loss", None) or unrolled.g_loss
    steps, batches = unrolled.plan(batch, options.pop("steps", None), options.pop("resample", None))
    inner = [batches(k) for k in range(steps)]
    inputs = differentiable_inputs(wrt, (d_loss, g_loss), batch, options, inner)
    d_losses: list[float] = []
    kept: dict[int, int] = {}

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        value = d_loss(*args, **kwargs)
        d_losses.append(value.item())
        return value

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    random = RandomState([*inputs, *unrolled.parts()[2]])

    def gradient(steps: int, first_term_alone: bool) -> tuple[float, Tensor]:
        d_losses.clear()
        stop, unrolled.stop_gradient = unrolled.stop_gradient, first_term_alone
        try:
            with random.replayed():
                loss = unrolled(
                    *batch, d_loss=watched, g_loss=g_loss, steps=steps, resample=inner[:steps] or None, **options
                )
        finally:
            unrolled.stop_gradient = stop
        grads = torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True)
        return loss.item(), torch.cat([g.reshape(-1).double() for g in grads if g is not None])

    _, plain = gradient(0, True)
    _, first = gradient(steps, True)
    began = time.perf_counter()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value, total = gradient(steps, unrolled.stop_gradient)
    seconds = time.perf_counter() - began
    a, b = float(first.norm()), float((total - first).norm())
    lengths = float(total.norm()) * float(plain.norm())
    return Diagnosis(
        steps=steps,
        d_losses=list(d_losses),
        g_loss=value,
        first_term=a,
        second_term=b,
        share=b / (a + b) if a + b else 0.0,
        cosine=float(total @ plain) / lengths if lengths else float("nan"),
        ratio=float(total.norm() / plain.norm()) if plain.norm() else float("inf"),
        seconds=seconds,
        kept_bytes=sum(kept.values()),
    )
