"""Batch normalization whose second derivative takes a few passes over the activations, and not thirty as in torch."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..torch_private import is_transformed
from .normalization import by_channel


def batch_norm(
    input: Tensor,  # noqa: A002, torch's name
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Return the same as ``F.batch_norm``, with derivatives of any order."""
    # Evaluation mode and mixed precision are left to torch's own function.
    plain = (
        training and input.dtype in (torch.float32, torch.float64) and (weight is None or weight.dtype == input.dtype)
    )
    if not plain or input.numel() <= input.shape[1] or is_transformed(input):
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return _BatchNorm.apply(input, weight, bias, running_mean, running_var, momentum, eps)  # type: ignore[no-any-return]


class _BatchNorm(torch.autograd.Function):
    """y = γ x̂ + β with x̂ = (x - μ) r, where μ and r = 1 / √(σ² + eps) are the statistics of each channel."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        y, mean, r = torch.native_batch_norm(x, weight, bias, running_mean, running_var, True, momentum, eps)
        ctx.save_for_backward(x, weight, mean, r)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, to_y: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        x, weight, mean, r = ctx.saved_tensors
        backward = kernel if is_transformed(to_y) else _BatchNormBackward.apply
        to_x, to_weight, to_bias = backward(to_y, x, weight, mean, r, ctx.eps)
        wanted = ctx.needs_input_grad
        return to_x, to_weight if wanted[1] else None, to_bias if wanted[2] else None, None, None, None, None


class _BatchNormBackward(torch.autograd.Function):
    """x̄ = γ r P(ȳ),  γ̄ = Σ ȳ x̂,  β̄ = Σ ȳ,  with P(w) = w - mean(w) - x̂ mean(w x̂).

    The derivative of this, for cotangents u, γ̄̄ and β̄̄ of x̄, γ̄ and β̄, with L = Σ u x̄ + γ̄̄ γ̄ + β̄̄ β̄::

        ∂L/∂ȳ = γ r P(u) + γ̄̄ x̂ + β̄̄
        ∂L/∂γ = r Σ u P(ȳ)
        ∂L/∂x = r (P(w) - x̂ γ r mean(u P(ȳ))),  w = γ̄̄ ȳ - γ r (mean(ȳ x̂) u + mean(u x̂) ȳ)

    Here μ and r are functions of x. The kernel that computes γ r P(ȳ) computes γ r P(u) too.
    """

    @staticmethod
    def forward(
        ctx: Any, to_y: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, r: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        found = kernel(to_y, x, weight, mean, r, eps)
        ctx.save_for_backward(to_y, x, weight, mean, r, *found[1:])
        ctx.eps = eps
        return found

    @staticmethod
    def backward(ctx: Any, u: Tensor, to_to_weight: Tensor, to_to_bias: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        to_y, x, weight, mean, r, to_weight, to_bias = ctx.saved_tensors
        if torch.is_grad_enabled():
            # A third derivative, such as that of a gradient penalty, needs a graph in which μ and r depend on x.
            return *by_channel(to_y, x, weight, r, (u, to_to_weight, to_to_bias)), None, None, None
        count = x.numel() // x.shape[1]
        shape = (1, -1, *[1] * (x.dim() - 2))
        to_to_y, u_along, u_sum = kernel(u, x, weight, mean, r, ctx.eps)
        # These are means over the batch, one for each channel.
        y_mean, y_along, u_mean, u_along = to_bias / count, to_weight / count, u_sum / count, u_along / count
        both = (u * to_y).mean([d for d in range(x.dim()) if d != 1]) - u_mean * y_mean - u_along * y_along
        gain = r if weight is None else weight * r

        # w and P(w) are sums of multiples of u, ȳ, x̂ and 1; the last two together are linear in x.
        of_u, of_y = -gain * y_along * r, (to_to_weight - gain * u_along) * r
        of_x_hat = -(of_u * u_along + of_y * y_along + gain * r * both)
        constant = -(of_u * u_mean + of_y * y_mean)
        of_x = of_x_hat * r
        to_x = torch.addcmul((constant - of_x * mean).view(shape), x, of_x.view(shape))
        to_x = torch.addcmul(torch.addcmul(to_x, u, of_u.view(shape)), to_y, of_y.view(shape))

        of_x = to_to_weight * r
        to_to_y = torch.addcmul(to_to_y, x, of_x.view(shape)) + (to_to_bias - of_x * mean).view(shape)
        return to_to_y, to_x, None if weight is None else r * both * count, None, None, None


def kernel(
    to_y: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    r: Tensor,
    eps: float,
    mask: Sequence[bool] = (True,) * 3,
) -> Any:
    """Return γ r P(ȳ), Σ ȳ x̂ and Σ ȳ, those of them that ``mask`` asks for."""
    return torch.ops.aten.native_batch_norm_backward.default(
        to_y, x, weight, None, None, mean, r, True, eps, list(mask)
    )
