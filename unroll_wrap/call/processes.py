"""The process group that a user passes, and what processes can compare of a call."""

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor


def check_group(group: Any) -> None:
    """A process group, or False.

    Raises:
        TypeError: something else.
        ValueError: what stands for the group of all processes before there is one.
    """
    if group is None:
        raise ValueError(
            "average_gradients is None, as torch.distributed.group.WORLD is before init_process_group. Call that "
            "first, or leave average_gradients out, and each rank looks ahead on its own."
        )
    if not (group is False or (dist.is_available() and isinstance(group, dist.ProcessGroup))):
        raise TypeError(
            f"average_gradients is {group!r:.200}. Pass a process group, torch.distributed.group.WORLD or "
            "mesh.get_group(), or False for ranks that look ahead on their own."
        )


def looks_of(tensors: Sequence[Tensor]) -> str:
    """Return the shapes and dtypes of tensors as text."""
    return ", ".join(f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in tensors)


def words_of(value: Any) -> str:
    """Return what of a value can be compared between processes: no address, no device."""
    if isinstance(value, Tensor):
        return str(value.tolist())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(words_of, value))
    if callable(value):
        return getattr(value, "__qualname__", type(value).__name__)
    return repr(value)
