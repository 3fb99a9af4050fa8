"""Correct and fast second derivatives for operators whose second derivatives are slow, wrong or missing in torch.

Where formulas cover the whole graph of a loss, they give its gradient and the second derivatives (``adjoint``).
Otherwise autograd does, with some operators replaced while the loss runs and some nodes of its graph repaired.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..torch_private import FunctionMode
from .adjoint import Adjoint, adjoint
from .batch_norm import batch_norm
from .convolution import conv2d, parameters_only
from .refusals import norms_watched
from .repairs import FRAGILE, is_custom, is_fragile, repair

__all__ = [
    "FRAGILE",
    "Adjoint",
    "adjoint",
    "is_custom",
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
_WITH_REPLACED = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.Conv2d)


def twice_differentiable(modules: Sequence[nn.Module]) -> AbstractContextManager[object]:
    """Return a context in which a forward pass through these modules has a correct and fast second derivative."""
    return _Replaced() if any(isinstance(m, _WITH_REPLACED) for m in modules) else nullcontext()


class _Replaced(FunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return REPLACED.get(func, func)(*args, **(kwargs or {}))
