"""Tell by their memory which tensors are the same values."""

from collections.abc import Iterable, Mapping, Sequence

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


def spans(tensors: Iterable[Tensor]) -> dict[int, list[tuple[int, int]]]:
    """Return the bytes that tensors use, from the first to behind the last, by the address of their storage."""
    found: dict[int, list[tuple[int, int]]] = {}
    for t in filter(has_memory, tensors):
        found.setdefault(address(t), []).append(_bytes_of(t))
    return found


def overlapping(tensors: Iterable[Tensor], taken: Mapping[int, Sequence[tuple[int, int]]]) -> list[Tensor]:
    """Return those of the tensors that use some of these bytes."""
    near = [(t, taken.get(address(t), ())) for t in tensors if has_memory(t)]
    return [t for t, others in near if any(_meet(_bytes_of(t), other) for other in others)]


def _bytes_of(t: Tensor) -> tuple[int, int]:
    first = int(t.storage_offset()) * t.itemsize
    entries = 1 + sum((int(n) - 1) * int(stride) for n, stride in zip(t.shape, t.stride(), strict=True))
    return first, first + entries * t.itemsize


def _meet(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def memory_of(tensors: Iterable[Tensor]) -> set[int]:
    """Return the storages of these tensors; those of sharded and traced ones have no address in memory."""
    return {t.untyped_storage()._cdata for t in tensors if has_memory(t)}
