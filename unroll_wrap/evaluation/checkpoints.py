"""Let ``torch.utils.checkpoint`` inside D recompute with the tensors of the step that the checkpoint belongs to.

A checkpointed part of the forward pass runs again in every backward pass. If a loss captures ``fake``, one of these
passes is the user's own ``backward()`` after the call, when D holds its live tensors again. Without this module, the
gradient would then be wrong without an error, and D's buffers would change.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from typing import Any

import torch.utils.checkpoint as torch_checkpoint
from torch.autograd.graph import disable_saved_tensors_hooks, saved_tensors_hooks

from .. import guards
from ..live.settings import Setting
from ..live.undo import Undo
from ..torch_private import function_modes
from .carried import copies
from .swap import Swap


class _Current(threading.local):
    swap: Swap | None = None
    settings: Sequence[Setting] = ()
    made = 0


_current = _Current()
# Torch has no public way to change what a checkpoint recomputes.
_PARTS = ("_CheckpointFrame", "CheckpointFunction")


def checkpoints_made() -> int:
    """Return the number of checkpoints that this thread has made within unrolls."""
    return _current.made


def rerun_in_place(swap: Swap, settings: Sequence[Setting], undo: Undo) -> None:
    """Let every checkpoint made from now on recompute with the tensors that D holds when it is made.

    The ``settings`` of this call are in force then too. ``undo`` restores torch's own behaviour.
    """
    before = _current.swap, _current.settings

    def put_back() -> None:
        _current.swap, _current.settings = before

    undo.later(put_back)
    _current.swap, _current.settings = swap, settings
    _hooks_noticed.hold(undo)
    if all(hasattr(torch_checkpoint, name) for name in _PARTS):
        _watched.hold(undo)
    else:
        # Torch has no other way to forbid checkpoints.
        hooks = disable_saved_tensors_hooks(
            "This version of torch checkpoints in a way that an unroll does not know. Switch checkpointing, and other "
            "hooks on saved tensors, off while unroll_wrap.is_unrolling()."
        )
        undo.later(lambda: hooks.__exit__(None, None, None))
        hooks.__enter__()


@contextmanager
def in_place(swap: Swap) -> Iterator[None]:
    """Apply ``rerun_in_place`` within a context."""
    undo = Undo()
    with undo, undo:
        rerun_in_place(swap, (), undo)
        yield


def _parts() -> tuple[Any, ...]:
    return tuple(getattr(torch_checkpoint, name) for name in _PARTS)


def _put_parts(parts: Sequence[Any]) -> None:
    for name, part in zip(_PARTS, parts, strict=True):
        setattr(torch_checkpoint, name, part)


@cache
def _watched_parts(frame: Any, reentrant: Any) -> tuple[Any, Any]:
    class Frame(frame):
        def __init__(self, recompute_fn: Callable[..., None], *rest: Any, **named: Any) -> None:
            swap = _current.swap
            _current.made += 1
            super().__init__(recompute_fn if swap is None else _again(recompute_fn, swap), *rest, **named)

    class Reentrant(reentrant):
        @classmethod
        def apply(cls, *args: Any, **kwargs: Any) -> Any:
            if _current.swap is None:
                return reentrant.apply(*args, **kwargs)
            raise RuntimeError(
                "A loss calls torch.utils.checkpoint with use_reentrant=True, which hides parameters from the "
                "gradients that an unroll takes. Pass use_reentrant=False."
            )

    return Frame, Reentrant


def _again(function: Callable[..., None], swap: Swap) -> Callable[..., None]:
    """Return ``function``, wrapped to run with the tensors that D holds now.

    The first recomputation updates D's buffers once more, as in a real step; later ones start from the same buffers.
    """
    params, buffers, settings = swap.inside(), copies(swap.buffers()), _current.settings
    around = [getattr(mode, "again", lambda mode=mode: mode)() for mode in _own_modes()]
    unrolling = guards.is_unrolling()
    ran = False

    def run(*args: Any) -> None:
        nonlocal ran, buffers
        first, ran = not ran, True
        undo = Undo()
        with undo, undo, ExitStack() as stack:
            for setting in settings:
                setting.hold(undo)
            if unrolling:
                stack.enter_context(guards.unrolling())
            active = _own_modes()
            for context in around:
                if context not in active:
                    stack.enter_context(context)
            if first and swap.inside() is params:
                buffers = copies(swap.buffers())
            else:
                stack.enter_context(swap.holding(params, buffers))
            function(*args)

    return run


def _own_modes() -> list[Any]:
    """Return this package's active function modes, without which a recomputation would build another graph."""
    own = __name__.split(".")[0]
    return [m for m in function_modes() if type(m).__module__.split(".")[0] == own]


def _noticing(enter: Callable[..., None]) -> Callable[..., None]:
    def entering(hooks: saved_tensors_hooks) -> None:
        # Other hooks may keep the tensor object that they are given, and then it has to be the step's own.
        if _current.swap is not None and not type(hooks).__module__.startswith(_KNOWN_HOOKS):
            _current.swap.stand_in()
        enter(hooks)

    return entering


_KNOWN_HOOKS = (torch_checkpoint.__name__, __name__.partition(".")[0] + ".")
_hooks_noticed = Setting(
    lambda: saved_tensors_hooks.__enter__, partial(setattr, saved_tensors_hooks, "__enter__"), _noticing
)
_watched = Setting(_parts, _put_parts, lambda parts: _watched_parts(*parts))
