"""Replace torch's operators by twice differentiable ones while a loss runs."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..torch_private import FunctionMode
from .batch_norm import batch_norm
from .convolution import conv2d

REPLACED: dict[Any, Any] = {
    F.batch_norm: batch_norm,
    torch.conv2d: conv2d,
}
_WITH_REPLACED = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.Conv2d)


def twice_differentiable(modules: Sequence[nn.Module]) -> AbstractContextManager[object]:
    """Return a context in which a forward pass through these modules has a correct and fast second derivative."""
    return _Replaced() if any(isinstance(m, _WITH_REPLACED) for m in modules) else nullcontext()


class _Replaced(FunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return REPLACED.get(func, func)(*args, **(kwargs or {}))
