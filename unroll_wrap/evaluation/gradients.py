"""``torch.autograd.grad`` with errors that name their cause, and with scaled cotangents for float16."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

GIVEN_BACK = (
    "A loss runs a sharded generator, which has given back its parameters' memory by now: no gradient would reach the "
    "shards. Call it before, and pass fake as an argument."
)
NO_SECOND_DERIVATIVE = (
    "an operator in it has no second derivative, which the second term of Eq. 12 needs. Replace the operator, pass "
    "backward=FiniteDifference(), or stop_gradient=True for the first term alone"
)

_SELECTIVE = (
    "a part of D is checkpointed selectively (context_fn=), which torch differentiates once only. Use a plain "
    "torch.utils.checkpoint there, or pass backward=FiniteDifference(), or stop_gradient=True for the first term alone"
)


class Factor:
    """A factor that multiplies cotangents in float16, and is lowered whenever they overflow."""

    def __init__(self, value: float) -> None:
        self.value = value

    def differentiate(
        self,
        name: str,
        outputs: Sequence[Tensor],
        inputs: Sequence[Tensor],
        grad_outputs: Sequence[Tensor] | None = None,
        **options: Any,
    ) -> list[Tensor | None]:
        """Return the gradients, computed from cotangents times the factor and divided by it at the end."""
        bars = [torch.ones_like(o) for o in outputs] if grad_outputs is None else grad_outputs
        options["retain_graph"] = True
        while True:
            scaled = [bar * self.value for bar in bars]
            found = differentiate(name, outputs, inputs, scaled, **options)
            overflowed = any(g is not None and not g.isfinite().all() for g in found)
            if not overflowed or self.value <= 1:
                return [None if g is None else g / self.value for g in found]
            self.value = max(self.value / 2**8, 1.0)


def differentiate(
    name: str,
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    grad_outputs: Sequence[Tensor] | None = None,
    factor: Factor | None = None,
    **options: Any,
) -> list[Tensor | None]:
    """Return the gradients of ``outputs``, None for inputs that they do not depend on; errors say ``name``."""
    if not (outputs and inputs):
        return [None] * len(inputs)
    if factor is not None:
        return factor.differentiate(name, outputs, inputs, grad_outputs, **options)
    with causes(name):
        return list(torch.autograd.grad(outputs, inputs, grad_outputs, allow_unused=True, **options))


@contextmanager
def causes(name: str) -> Iterator[None]:
    """Name the causes of autograd's errors, and remedies; ``name`` is that of the loss."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "modified by an inplace operation" in text:
            cause = (
                "a tensor that an earlier evaluation still needs was changed in place, often a label buffer with "
                "fill_(). Make a new tensor instead, such as torch.full_like"
            )
        elif "not implemented" in text or "differentiate twice" in text or "double backward" in text:
            cause = NO_SECOND_DERIVATIVE
        elif "selective activation checkpoint" in text:
            cause = _SELECTIVE
        elif "out of bounds for storage of size 0" in text:
            raise ValueError(GIVEN_BACK) from error
        elif "returned nan values" in text:  # Anomaly mode raises this.
            cause = "an operator's derivative is NaN here"
        else:
            raise
        raise RuntimeError(f"Differentiating {name}: {cause}. Autograd said: {text}") from error
