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

from . import norms
from .batch_norm import batch_norm
from .convolution import conv2d, parameters_only
from .weight_norm import weight_norm

__all__ = ["parameters_only", "thrice_differentiable", "twice_differentiable"]

REPLACED: dict[Any, Any] = {
    torch._weight_norm: weight_norm,  # pyright: ignore[reportPrivateImportUsage]
    F.batch_norm: batch_norm,
    torch.conv2d: conv2d,
}

REPLACED_FOR_PENALTIES: dict[Any, Any] = {
    **REPLACED,
    F.batch_norm: norms.batch_norm,
    F.instance_norm: norms.instance_norm,
    F.layer_norm: norms.layer_norm,
}


def twice_differentiable(modules: Sequence[nn.Module]) -> AbstractContextManager[object]:
    """A context in which a forward pass through these modules has a second derivative that is right and fast."""
    return _Replaced(REPLACED) if any(map(_has_replaced, modules)) else nullcontext()


def thrice_differentiable() -> AbstractContextManager[object]:
    """A context in which a forward pass has a right third derivative too; slower."""
    return _Replaced(REPLACED_FOR_PENALTIES)


def _has_replaced(module: nn.Module) -> bool:
    if isinstance(module, (BatchNorm1d, BatchNorm2d, BatchNorm3d, nn.Conv2d, _WeightNorm)):
        return True
    return any(isinstance(hook, WeightNorm) for hook in module._forward_pre_hooks.values())


class _Replaced(TorchFunctionMode):
    def __init__(self, by: dict[Any, Any]) -> None:
        super().__init__()
        self._by = by

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._by.get(func, func)(*args, **(kwargs or {}))
