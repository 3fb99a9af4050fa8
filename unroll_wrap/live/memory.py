"""Tell by their memory which tensors are the same values."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import NamedTuple

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


class Span(NamedTuple):
    """The bytes that a tensor uses of a memory, from the first to behind the last."""

    memory: str
    first: int
    end: int


def span(tensor: Tensor) -> Span:
    """Return where a tensor lies: in the memory of its device, or in its storage on devices without addresses."""
    entries = 1 + sum((int(n) - 1) * int(stride) for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    # On other devices data_ptr() may be a handle, as on MPS, or 0, as on XLA.
    if tensor.device.type in ("cpu", "cuda"):
        memory, first = str(tensor.device), tensor.data_ptr()
    else:
        memory, first = f"storage {address(tensor)}", int(tensor.storage_offset()) * tensor.itemsize
    return Span(memory, first, first + entries * tensor.itemsize)


def spans(tensors: Iterable[Tensor]) -> list[Span]:
    """Return the bytes that tensors use, in order and without overlaps."""
    found: list[Span] = []
    for one in sorted(span(t) for t in tensors if has_memory(t)):
        if found and one.memory == found[-1].memory and one.first <= found[-1].end:
            one = Span(one.memory, found[-1].first, max(one.end, found.pop().end))
        found.append(one)
    return found


def overlapping(tensors: Iterable[Tensor], taken: Sequence[Span]) -> list[Tensor]:
    """Return those of the tensors that use some of these bytes, which ``spans`` has returned."""

    def used(t: Tensor) -> bool:
        memory, first, end = span(t)
        before = bisect_left(taken, (memory, end))
        return before > 0 and taken[before - 1].memory == memory and first < taken[before - 1].end

    return [t for t in tensors if has_memory(t) and used(t)]


def memory_of(tensors: Iterable[Tensor]) -> set[int]:
    """Return the storages of these tensors; those of sharded and traced ones have no address in memory."""
    return {t.untyped_storage()._cdata for t in tensors if has_memory(t)}
