"""``torch.autograd.grad`` with the causes of its errors named, and with larger numbers on the way in float16."""

from collections.abc import Sequence
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


class Factor:
    """What a graph's cotangents are multiplied by in float16, lowered whenever they overflow."""

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
        """Return the same gradients as without a factor, from cotangents that are larger on the way."""
        bars = [torch.ones_like(o) for o in outputs] if grad_outputs is None else grad_outputs
        while True:
            scaled = [bar * self.value for bar in bars]
            found = gradients(name, outputs, inputs, scaled, **{**options, "retain_graph": True})
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
    """Return the gradients of ``outputs``, with None for inputs that are not reached; ``name`` is for messages."""
    if not (outputs and inputs):
        return [None] * len(inputs)
    apply = gradients if factor is None else factor.differentiate
    return apply(name, outputs, inputs, grad_outputs, **options)


def gradients(
    name: str,
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    grad_outputs: Sequence[Tensor] | None = None,
    **options: Any,
) -> list[Tensor | None]:
    """Return what ``torch.autograd.grad`` does.

    Raises:
        RuntimeError: an operator cannot be differentiated, with the reason and a remedy.
        ValueError: a sharded generator has given back its memory.
    """
    try:
        return list(torch.autograd.grad(outputs, inputs, grad_outputs, allow_unused=True, **options))
    except RuntimeError as error:
        text = str(error)
        if "modified by an inplace operation" in text:
            cause = (
                "a tensor that an earlier evaluation still needs was changed in place, often a label buffer with "
                "fill_(). Make a new tensor instead, such as torch.full_like"
            )
        elif "not implemented" in text or "differentiate twice" in text or "double backward" in text:
            cause = NO_SECOND_DERIVATIVE
        elif "out of bounds for storage of size 0" in text:
            raise ValueError(GIVEN_BACK) from error
        elif "returned nan values" in text:  # in anomaly mode
            cause = "an operator's derivative is NaN here"
        else:
            raise
        raise RuntimeError(f"Differentiating {name}: {cause}. Autograd said: {text}") from error
