"""One thread at a time unrolls a module: its tensors lie in the module's own slots while it does."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

_lock = threading.Lock()
_thread_of: dict[int, int] = {}


@contextmanager
def alone(modules: Sequence[nn.Module]) -> Iterator[None]:
    """No other thread unrolls any of these modules; nests within a thread.

    Raises:
        RuntimeError: another thread is doing so.
    """
    me = threading.get_ident()
    with _lock:
        taken = [type(m).__name__ for m in modules if _thread_of.get(id(m), me) != me]
        if taken:
            raise RuntimeError(
                f"Another thread is unrolling this discriminator ({taken[0]}) at this moment. One thread at a time "
                "may: wait for it (threading.Lock), or give each thread a discriminator of its own (copy.deepcopy)."
            )
        mine = [id(m) for m in modules if id(m) not in _thread_of]
        _thread_of.update(dict.fromkeys(mine, me))
    try:
        yield
    finally:
        with _lock:
            for i in mine:
                del _thread_of[i]
