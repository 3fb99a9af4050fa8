"""Second derivatives that torch has slow, wrong or not at all.

The slow ones are those of operators that others stand in for while a loss runs; the rest is made good in its graph.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from torch.overrides import TorchFunctionMode

from .adjoint import Adjoint, adjoint
from .batch_norm import batch_norm
from .convolution import conv2d, parameters_only
from .refusals import norms_watched
from .repairs import FRAGILE, is_fragile, repair

__all__ = [
    "FRAGILE",
    "Adjoint",
    "adjoint",
    "is_fragile",
    "norms_watched",
    "parameters_only",
    "repair",
    "twice_differentiable",
]

REPLACED: dict[Any, Any] = {
    F.batch_norm: batch_norm,
    torch.conv2d: conv2d,
}
_WITH_REPLACED = (BatchNorm1d, BatchNorm2d, BatchNorm3d, nn.Conv2d)


def twice_differentiable(modules: Sequence[nn.Module]) -> AbstractContextManager[object]:
    """A context in which a forward pass through these modules has a second derivative that is right and fast."""
    return _Replaced() if any(isinstance(m, _WITH_REPLACED) for m in modules) else nullcontext()


class _Replaced(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return REPLACED.get(func, func)(*args, **(kwargs or {}))
