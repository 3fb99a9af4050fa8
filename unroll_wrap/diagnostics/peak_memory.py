"""Count how many bytes of tensors a piece of code holds at one time, on any device."""

import time
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from ..torch_private import TorchDispatchMode


class PeakMemory(TorchDispatchMode):
    """A context that counts the memory of the tensors made inside it, from their creation to their end.

    The peak memory of the process is no substitute, because it never falls and an allocator keeps memory that is free.
    All operators count, including those of a backward pass, but not the memory that a kernel needs while it runs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0  # The most bytes alive at one time.
        self.marks: list[int] = []  # The bytes alive at each ``mark``.
        self.seconds = 0.0  # How long the counting itself has taken.
        self._alive: dict[int, int] = {}
        self._total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, and count the memory that is new."""
        out = func(*args, **(kwargs or {}))
        began = time.perf_counter()
        known = {t.untyped_storage()._cdata for t in _tensors((args, *(kwargs or {}).values()))}
        for tensor in _tensors((out,)):
            memory = tensor.untyped_storage()
            # There are two look-ups, because a union of both sets would copy the larger one for every tensor.
            if memory._cdata not in self._alive and memory._cdata not in known:
                self._alive[memory._cdata] = memory.nbytes()
                self._total += memory.nbytes()
                self.peak = max(self.peak, self._total)
                weakref.finalize(memory, self._gone, memory._cdata).atexit = False
        self.seconds += time.perf_counter() - began
        return out

    def mark(self) -> None:
        """Note how many bytes are alive now."""
        self.marks.append(self._total)

    def _gone(self, address: int) -> None:
        self._total -= self._alive.pop(address)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors among what an operator takes or returns; a search of any container would take longer."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
