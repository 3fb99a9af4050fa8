"""One unroll of a module at a time: its tensors hold what is the unroll's meanwhile."""

import threading
from collections.abc import Sequence

from torch import nn

from .undo import LOCK, Undo

_thread_of: dict[int, tuple[int, object]] = {}


def exclude_others(modules: Sequence[nn.Module], undo: Undo) -> None:
    """Nobody else unrolls any of these modules until that is undone.

    Raises:
        RuntimeError: another thread does, or a loss that this thread is unrolling with.
    """
    me = threading.get_ident(), object()
    ids = [id(m) for m in modules]

    def leave() -> None:
        with LOCK:
            for i in ids:
                if _thread_of.get(i) is me:
                    del _thread_of[i]

    undo.later(leave)
    with LOCK:
        taken = next((m for m in modules if id(m) in _thread_of), None)
        thread = me[0] if taken is None else _thread_of[id(taken)][0]
        if taken is None:
            _thread_of.update(dict.fromkeys(ids, me))
    if taken is None:
        return
    name = type(taken).__name__
    if thread == me[0]:
        raise RuntimeError(
            f"This discriminator ({name}) is being unrolled already, by the call whose loss calls this. Use the "
            "plain loss inside d_loss and g_loss."
        )
    raise RuntimeError(
        f"Another thread is unrolling this discriminator ({name}) at this moment. One thread at a time may: wait "
        "for it (threading.Lock), or give each thread a discriminator of its own (copy.deepcopy)."
    )
