"""The value, joined to the generator's graph by gradients that are known already."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..evaluation.evaluate import GIVEN_BACK
from .unroll import Sensitivity


def hand_over(value: Tensor, sensitivity: Sensitivity) -> Tensor:
    """A scalar equal to ``value`` whose backward pass gives each tensor of the user's its gradient, once.

    Raises:
        ValueError: such a tensor has no memory.
    """
    pairs = list(sensitivity.pairs())
    if any(t.numel() and not t.untyped_storage().size() for t, _ in pairs):
        raise ValueError(GIVEN_BACK)
    surrogates = sensitivity.surrogates
    grads = [*(g for _, g in pairs), *(torch.ones_like(s) for s in surrogates)]
    _refuse_nan(sensitivity.edge)
    return _HandOver.apply(value, grads, *(t for t, _ in pairs), *surrogates)  # type: ignore[no-any-return]


def _refuse_nan(edge: Sequence[Any]) -> None:
    """What is handed to a graph that a loss captures is known in the caller's backward pass alone: check at its end."""
    totals: list[Tensor] = []

    def check() -> None:
        finite = torch.stack([t.to(totals[0]) for t in totals]).isfinite().all()
        totals.clear()
        if not finite:
            raise ValueError(
                "The losses are finite, and the gradient of an unrolled one by a tensor that it captures is not. Pass "
                "the tensor as an argument, as in unrolled(real, fake), to be told at which operator."
            )

    def note(found: Sequence[Tensor | None], of: Any) -> None:  # noqa: ARG001
        if not totals:
            torch.autograd.Variable._execution_engine.queue_callback(check)  # type: ignore[attr-defined]
        totals.extend(g.detach().abs().max() for g in found if g is not None and g.numel())

    for node in edge:
        node.register_hook(note)


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
