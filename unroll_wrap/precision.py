"""How far apart rounding takes two ways to compute the same loss."""

from collections.abc import Iterable

import torch
from torch import Tensor


def precision(tensors: Iterable[Tensor]) -> float:
    """The machine epsilon of the coarsest dtype among some tensors and what autocast makes of them."""
    used = {(t.dtype, t.device.type) for t in tensors}
    dtypes = {dtype for dtype, _ in used}
    dtypes |= {torch.get_autocast_dtype(device) for _, device in used if torch.is_autocast_enabled(device)}
    return max(torch.finfo(dtype).eps for dtype in dtypes)
