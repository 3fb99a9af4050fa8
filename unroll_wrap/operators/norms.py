"""Normalization written out, for third derivatives: a gradient penalty inside an unroll needs them.

That of torch's ``layer_norm`` is wrong, silently; its ``batch_norm``, which ``instance_norm`` calls, has none.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..autocast import autocast_dtypes
from .batch_norm import batch_norm as by_statistics


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """``F.layer_norm``."""
    out = _normalized(input, list(range(-len(normalized_shape), 0)), eps)
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``F.instance_norm``; with running statistics it stays torch's own."""
    if running_mean is not None:
        return F.instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    return _affine(_normalized(input, list(range(2, input.dim())), eps), weight, bias)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``F.batch_norm``, in evaluation mode too."""
    if training and running_mean is None and torch._C._are_functorch_transforms_active():
        return _affine(_normalized(input, [d for d in range(input.dim()) if d != 1], eps), weight, bias)
    if training or running_mean is None or running_var is None:
        return by_statistics(input, running_mean, running_var, weight, bias, training, momentum, eps)
    out = (input - _by_channel(input, running_mean)) * (_by_channel(input, running_var) + eps).rsqrt()
    return _affine(out, weight, bias)


def _normalized(x: Tensor, dims: list[int], eps: float) -> Tensor:
    # In 16 bits as torch's kernels do it: in 32. Under autocast the result stays there.
    wide = x.float() if x.itemsize == 2 else x
    centred = wide - wide.mean(dims, keepdim=True)
    out = centred * (centred.square().mean(dims, keepdim=True) + eps).rsqrt()
    return out if autocast_dtypes([x.device.type]) else out.to(x.dtype)


def _affine(out: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    out = out if weight is None else out * _by_channel(out, weight)
    return out if bias is None else out + _by_channel(out, bias)


def _by_channel(like: Tensor, values: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (like.dim() - 2))
