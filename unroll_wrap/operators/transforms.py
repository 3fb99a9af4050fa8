"""Detect torch's transforms, which cannot see through a ``torch.autograd.Function``."""

import torch
from torch import Tensor
from torch.autograd import forward_ad


def transformed(tensor: Tensor) -> bool:
    """Return whether torch.func or forward mode is active, or ``is_grads_batched`` has made the tensor."""
    return (
        torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._functorch.is_legacy_batchedtensor(tensor)  # pyright: ignore[reportAttributeAccessIssue]
    )
