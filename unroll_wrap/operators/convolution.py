"""Strided convolution of few channels, with a faster gradient of its input.

With three input channels and stride 2, torch's CPU kernel for the input's gradient takes eight times as long as the
forward one, and half of an inner step. A convolution of stride 1, whose output channels are the phases of the stride,
gives the same gradient.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from ..torch_private import is_transformed

# On one thread of a CPU, torch's own gradient was measured to be as fast or faster from 16 channels on.
_FEW = 8
# In float64 a convolution of many phases is slower than torch's own gradient.
_BY_PHASES = {torch.float32}


class _Wanted(threading.local):
    data = True


_wanted = _Wanted()


@contextmanager
def parameters_only() -> Iterator[None]:
    """Surround a backward pass that needs no gradient of the batch, so that D's first layer computes none."""
    _wanted.data = False
    try:
        yield
    finally:
        _wanted.data = True


def conv2d(
    input: Tensor,  # noqa: A002, torch's name
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Return the same as ``torch.conv2d``."""
    s, p = _pair(stride), _pair(padding)
    few = input.dim() == 4 and input.shape[1] <= _FEW and groups == 1 and _pair(dilation) == (1, 1)
    same = s[0] == s[1] > 1 and p[0] == p[1] and weight.shape[2] == weight.shape[3]
    # Under autocast the output has another dtype than the input.
    exact = input.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu")
    if is_transformed(input) or not (few and same and exact and input.device.type == "cpu"):
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    return _Convolution.apply(input, weight, bias, s[0], p[0], not _of_parameters(input))  # type: ignore[no-any-return]


def _pair(value: Any) -> tuple[Any, Any]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _of_parameters(x: Tensor) -> bool:
    """Return whether the graph of x leads to a parameter."""
    seen, stack = set(), [x.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(getattr(node, "variable", None), nn.Parameter):
            return True
        stack.extend(next_node for next_node, _ in node.next_functions)
    return False


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, data: bool
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry, ctx.data = (stride, padding), data
        return torch.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, to_y: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        if is_transformed(to_y):
            return *_torchs_gradients(wanted[:3], to_y, x, weight, *ctx.geometry), None, None, None
        to_input = wanted[0] and (_wanted.data or not ctx.data)
        to_x, to_weight = _ConvolutionBackward.apply(to_y, x, weight, ctx.geometry, to_input, wanted[1])
        return to_x, to_weight, to_y.sum((0, 2, 3)) if wanted[2] else None, None, None, None


class _ConvolutionBackward(torch.autograd.Function):
    """x̄ = Wᵀ ȳ and W̄ = ȳ xᵀ. With cotangents u of x̄ and V of W̄: ∂/∂ȳ = W u + V x,  ∂/∂x = Vᵀ ȳ,  ∂/∂W = ȳ uᵀ."""

    @staticmethod
    def forward(
        ctx: Any, to_y: Tensor, x: Tensor, weight: Tensor, geometry: tuple[int, int], to_x: bool, to_weight: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.save_for_backward(to_y, x, weight)
        ctx.geometry = geometry
        ctx.set_materialize_grads(False)
        return (
            input_gradient(to_y, weight, x.shape[2:], *geometry) if to_x else None,
            _weight_gradient(to_y, x, weight, *geometry) if to_weight else None,
        )

    @staticmethod
    def backward(ctx: Any, u: Tensor | None, v: Tensor | None) -> tuple[Any, ...]:  # type: ignore[override]
        to_y, x, weight = ctx.saved_tensors
        pairs = [(a, b) for a, b in ((u, weight), (x, v)) if a is not None and b is not None]
        # The sum of two convolutions is one convolution over the channels of both.
        inputs, kernels = ([pair[i] for pair in pairs] for i in (0, 1))
        return (
            torch.conv2d(torch.cat(inputs, 1), torch.cat(kernels, 1), None, *ctx.geometry),
            None if v is None or not ctx.needs_input_grad[1] else input_gradient(to_y, v, x.shape[2:], *ctx.geometry),
            None if u is None else _weight_gradient(to_y, u, weight, *ctx.geometry),
            None,
            None,
            None,
        )


def input_gradient(to_y: Tensor, weight: Tensor, size: Sequence[int], s: int, p: int) -> Tensor:
    """x̄[s q + r - p] = Σ_m W[s m + r]ᵀ ȳ[q - m], in both dimensions; the phases r are channels of one convolution."""
    if to_y.dtype not in _BY_PHASES:
        return conv2d_input((len(to_y), weight.shape[1], *size), weight, to_y, s, p)
    outputs, inputs, k, _ = weight.shape
    m = -(-k // s)
    padded = F.pad(weight, (0, s * m - k, 0, s * m - k)).view(outputs, inputs, m, s, m, s)
    phases = padded.permute(1, 3, 5, 0, 2, 4).flip(-1, -2).reshape(inputs * s * s, outputs, m, m)
    found = _woven(torch.conv2d(to_y, phases, padding=m - 1), s)
    height, width = (n + p - f for n, f in zip(size, found.shape[2:], strict=True))
    return F.pad(found, (-p, width, -p, height))


def _woven(phases: Tensor, s: int) -> Tensor:
    """Return the same as ``F.pixel_shuffle``, which takes two to four times as long."""
    n, channels, height, width = phases.shape
    inputs = channels // (s * s)
    of = phases.view(n, inputs, s, s, height, width)
    rows = [torch.stack([of[:, :, i, j] for j in range(s)], -1) for i in range(s)]
    return torch.stack(rows, 3).view(n, inputs, s * height, s * width)


def _weight_gradient(to_y: Tensor, x: Tensor, weight: Tensor, s: int, p: int) -> Tensor:
    return _torchs_gradients((False, True, False), to_y, x, weight, s, p)[1]  # type: ignore[no-any-return]


def _torchs_gradients(wanted: Sequence[bool], to_y: Tensor, x: Tensor, weight: Tensor, s: int, p: int) -> Any:
    """Return those of the gradients of input, weight and bias that are ``wanted``, by torch's own kernel."""
    sizes = [weight.shape[0]] if wanted[2] else None
    return torch.ops.aten.convolution_backward(to_y, x, weight, sizes, [s, s], [p, p], [1, 1], False, [0, 0], 1, wanted)
