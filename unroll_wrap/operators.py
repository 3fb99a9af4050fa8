"""Operators that torch differentiates once but not twice, written so that it does.

Weight normalization: on the CPU, torch 2.14 returns a wrong second derivative for ``torch._weight_norm``, silently.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode


def twice_differentiable(modules: Sequence[nn.Module]) -> AbstractContextManager[object]:
    """A context in which a forward pass through these modules has a right second derivative."""
    return _Replaced() if any(map(_has_weight_norm, modules)) else nullcontext()


def _has_weight_norm(module: nn.Module) -> bool:
    hooks = module._forward_pre_hooks.values()
    return isinstance(module, _WeightNorm) or any(isinstance(h, WeightNorm) for h in hooks)


class _Replaced(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (_weight_norm if func is torch._weight_norm else func)(*args, **(kwargs or {}))


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))
