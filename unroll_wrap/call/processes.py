"""Check the process group that a user passes, and describe a call in text that processes can compare."""

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor


def check_group(group: Any) -> None:
    """Raise unless ``group`` is a process group or False; None is what WORLD is before ``init_process_group``."""
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
    """Return text for a value that processes can compare, because it contains no address and no device."""
    if isinstance(value, Tensor):
        return str(value.tolist())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(words_of, value))
    if callable(value):
        return getattr(value, "__qualname__", type(value).__name__)
    return repr(value)
