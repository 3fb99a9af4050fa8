"""One unroll of a module at a time: its tensors lie in the module's own slots meanwhile."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

_lock = threading.Lock()
_thread_of: dict[int, int] = {}


@contextmanager
def alone(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Nobody else unrolls any of these modules.

    Raises:
        RuntimeError: another thread does, or a loss that this thread is unrolling with.
    """
    me = threading.get_ident()
    mine = dict.fromkeys(map(id, modules), me)
    with _lock:
        if taken := mine.keys() & _thread_of.keys():
            name, thread = next((type(m).__name__, _thread_of[id(m)]) for m in modules if id(m) in taken)
        else:
            _thread_of.update(mine)
    if taken:
        if thread == me:
            raise RuntimeError(
                f"This discriminator ({name}) is being unrolled already, by the call whose loss calls this. Use the "
                "plain loss inside d_loss and g_loss."
            )
        raise RuntimeError(
            f"Another thread is unrolling this discriminator ({name}) at this moment. One thread at a time may: wait "
            "for it (threading.Lock), or give each thread a discriminator of its own (copy.deepcopy)."
        )
    try:
        yield
    finally:
        with _lock:
            for i in mine:
                del _thread_of[i]
