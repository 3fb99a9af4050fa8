"""Operators whose second derivative torch has wrong or slow, written so that it is right and fast."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode

from .batch_norm import batch_norm
from .convolution import conv2d, parameters_only
from .weight_norm import weight_norm

__all__ = ["parameters_only", "twice_differentiable"]

REPLACED: dict[Any, Any] = {
    torch._weight_norm: weight_norm,  # pyright: ignore[reportPrivateImportUsage]
    F.batch_norm: batch_norm,
    torch.conv2d: conv2d,
}


def twice_differentiable(modules: Sequence[nn.Module]) -> AbstractContextManager[object]:
    """A context in which a forward pass through these modules has a second derivative that is right and fast."""
    return _Replaced() if any(map(_has_replaced, modules)) else nullcontext()


def _has_replaced(module: nn.Module) -> bool:
    if isinstance(module, (BatchNorm1d, BatchNorm2d, BatchNorm3d, nn.Conv2d, _WeightNorm)):
        return True
    return any(isinstance(hook, WeightNorm) for hook in module._forward_pre_hooks.values())


class _Replaced(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return REPLACED.get(func, func)(*args, **(kwargs or {}))
