"""Count how many bytes of tensors a piece of code holds at one time, on any device."""

import weakref
from typing import Any

from torch import Tensor

from ..torch_private import TorchDispatchMode, pytree


class PeakMemory(TorchDispatchMode):
    """A context that counts the memory of the tensors made inside it, from their creation to their end.

    The peak memory of the process is no substitute, because it never falls and an allocator keeps memory that is free.
    All operators count, including those of a backward pass, but not the memory that a kernel needs while it runs.

    Attributes:
        peak: the most bytes alive at one time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, int] = {}
        self._total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, and count the memory that is new."""
        out = func(*args, **(kwargs or {}))
        known = {_memory(t)._cdata for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in pytree.tree_leaves(out):
            if not isinstance(tensor, Tensor):
                continue
            memory = _memory(tensor)
            # There are two look-ups, because a union of both sets would copy the larger one for every tensor.
            if memory._cdata not in self._alive and memory._cdata not in known:
                self._alive[memory._cdata] = memory.nbytes()
                self._total += memory.nbytes()
                self.peak = max(self.peak, self._total)
                weakref.finalize(memory, self._gone, memory._cdata).atexit = False
        return out

    def _gone(self, address: int) -> None:
        self._total -= self._alive.pop(address)


def _memory(tensor: Tensor) -> Any:
    return tensor.untyped_storage()
