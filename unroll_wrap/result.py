"""The value, joined to the generator's graph by gradients that are known already."""

from typing import Any

import torch
from torch import Tensor

from .unroll import Sensitivity


def hand_over(value: Tensor, sensitivity: Sensitivity) -> Tensor:
    """A scalar equal to ``value`` whose backward pass gives each tensor of the user's its gradient, once.

    Raises:
        ValueError: such a tensor has no memory.
    """
    pairs = list(sensitivity.pairs())
    if any(t.numel() and not t.untyped_storage().size() for t, _ in pairs):
        raise ValueError(
            "A loss runs a sharded generator, which has given back its parameters' memory by now: no gradient would "
            "reach the shards. Call it before, and pass fake as an argument."
        )
    surrogates = sensitivity.surrogates
    grads = [*(g for _, g in pairs), *(torch.ones_like(s) for s in surrogates)]
    return _HandOver.apply(value, grads, *(t for t, _ in pairs), *surrogates)  # type: ignore[no-any-return]


class _HandOver(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, grads: list[Tensor], *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*grads, *tensors)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        n = len(ctx.saved_tensors) // 2
        grads, tensors = ctx.saved_tensors[:n], ctx.saved_tensors[n:]
        scale = grad_output.detach().reshape(())
        given = [g * scale.to(g.device, g.dtype) for g in grads]
        if torch.is_grad_enabled():
            # The sweep's own graph is gone: a second derivative would leave out how these gradients move.
            given = [_Once.apply(g, *tensors) for g in given]
        return None, None, *given


class _Once(torch.autograd.Function):
    """A gradient that depends on ``tensors``, in a way that nobody can differentiate."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, *tensors: Tensor) -> Tensor:
        return grad.clone()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        raise RuntimeError(
            "An unrolled loss can be differentiated once; this differentiates its gradient. Compute penalties on "
            "gradients from other losses, or call backward() without create_graph=True."
        )
