"""Operators that torch does not differentiate as often as an unroll needs, written so that it does.

Weight normalization: on the CPU, torch 2.14 returns a wrong second derivative for ``torch._weight_norm``, silently. A
gradient penalty needs a third one: that of ``layer_norm`` is wrong, silently, and ``batch_norm`` has none.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode


def twice_differentiable(modules: Sequence[nn.Module]) -> AbstractContextManager[object]:
    """A context in which a forward pass through these modules has a right second derivative."""
    return _Replaced({torch._weight_norm: _weight_norm}) if any(map(_has_weight_norm, modules)) else nullcontext()


def thrice_differentiable() -> AbstractContextManager[object]:
    """A context in which a forward pass has a right third derivative too; slower."""
    return _Replaced({
        torch._weight_norm: _weight_norm,
        F.layer_norm: _layer_norm,
        F.batch_norm: _batch_norm,
        F.instance_norm: _instance_norm,
    })


def _has_weight_norm(module: nn.Module) -> bool:
    hooks = module._forward_pre_hooks.values()
    return isinstance(module, _WeightNorm) or any(isinstance(h, WeightNorm) for h in hooks)


class _Replaced(TorchFunctionMode):
    def __init__(self, by: dict[Any, Any]) -> None:
        super().__init__()
        self._by = by

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._by.get(func, func)(*args, **(kwargs or {}))


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _normalized(x: Tensor, dims: list[int], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.mean(dims, keepdim=True)
    centred = x - mean
    variance = centred.square().mean(dims, keepdim=True)
    return centred * (variance + eps).rsqrt(), mean, variance


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    out, _, _ = _normalized(input, list(range(-len(normalized_shape), 0)), eps)
    out = out if weight is None else out * weight
    return out if bias is None else out + bias


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    shape = [1, -1, *[1] * (input.dim() - 2)]
    if training:
        dims = [0, *range(2, input.dim())]
        out, mean, variance = _normalized(input, dims, eps)
        if running_mean is not None and running_var is not None:
            n = input.numel() // input.shape[1]
            with torch.no_grad():
                running_mean.lerp_(mean.reshape(-1).to(running_mean), momentum)
                running_var.lerp_(variance.reshape(-1).to(running_var) * (n / (n - 1)), momentum)
    elif running_mean is None or running_var is None:
        raise ValueError("batch_norm in eval mode has no statistics to read.")
    else:
        out = (input - running_mean.view(shape)) * (running_var.view(shape) + eps).rsqrt()
    out = out if weight is None else out * weight.view(shape)
    return out if bias is None else out + bias.view(shape)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if running_mean is not None:
        return F.instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    shape = [1, -1, *[1] * (input.dim() - 2)]
    out, _, _ = _normalized(input, list(range(2, input.dim())), eps)
    out = out if weight is None else out * weight.view(shape)
    return out if bias is None else out + bias.view(shape)
