"""Allow one unroll of a module at a time, because its tensors hold the unroll's contents meanwhile."""

import threading
from collections.abc import Sequence

from torch import nn

from .undo import LOCK, Undo

_thread_of: dict[int, tuple[int, object]] = {}


def exclude_others(modules: Sequence[nn.Module], undo: Undo, who: str) -> None:
    """Prevent any other unroll of these modules until ``undo`` allows it again; messages call the player ``who``."""
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
        if taken is None:
            _thread_of.update(dict.fromkeys(ids, me))
            return
        thread, _ = _thread_of[id(taken)]
    name, who = type(taken).__name__, who.split()[-1]
    if thread == me[0]:
        raise RuntimeError(
            f"This {who} ({name}) is being unrolled already, by the call whose loss calls this. Use the plain loss "
            "inside losses."
        )
    raise RuntimeError(
        f"Another thread is unrolling this {who} ({name}) at this moment. One thread at a time may: wait for it "
        f"(threading.Lock), or give each thread a {who} of its own (copy.deepcopy)."
    )
