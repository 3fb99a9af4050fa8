"""Tell by their memory which tensors are the same values."""

from collections.abc import Iterable

import torch
from torch import Tensor

from ..torch_private import is_wrapped


def has_memory(tensor: Tensor) -> bool:
    """Return whether a tensor lies in memory of its own; one within ``torch.func.grad`` or ``vmap`` is a wrapper."""
    return tensor.layout is torch.strided and tensor.numel() > 0 and not is_wrapped(tensor)


def address(tensor: Tensor) -> int:
    """Return where a tensor's storage begins, or the number of the storage on devices without addresses, like XLA's.

    Two storages may lie in the same memory, as those of arrays shared with numpy do.
    """
    start = tensor.data_ptr() - int(tensor.storage_offset()) * tensor.element_size()
    return start if start > 0 else tensor.untyped_storage()._cdata


def memory_of(tensors: Iterable[Tensor]) -> set[int]:
    """Return the storages of these tensors; those of sharded and traced ones have no address in memory."""
    return {t.untyped_storage()._cdata for t in tensors if has_memory(t)}
