"""Whether a transform of torch's is about, to which a ``torch.autograd.Function`` is opaque."""

import torch
from torch import Tensor
from torch.autograd import forward_ad


def transformed(tensor: Tensor) -> bool:
    """Within torch.func or forward mode; or one of a batch of tensors, as ``is_grads_batched`` makes them."""
    return (
        torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._functorch.is_legacy_batchedtensor(tensor)  # pyright: ignore[reportAttributeAccessIssue]
    )
