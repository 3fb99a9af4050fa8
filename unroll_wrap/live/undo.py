"""Undo what a call changes outside of itself, whatever happens, including Ctrl-C at any line."""

import operator
import threading
import traceback
from collections.abc import Callable
from typing import Any

import torch

from .. import guards
from ..torch_private import function_modes, put_function_modes, saving_hooks_disabled, set_grad_enabled

Step = Callable[[], Any]

# Guards what several threads may change. It is held for a few lines, and never while code of the user's runs.
LOCK = threading.RLock()
owned: Callable[[Any], bool] = operator.methodcaller("_is_owned")


class Undo:
    """A list of changes, each noted before it is made.

    As a context manager, it undoes them, the last one first. Enter it twice, ``with undo, undo``: if an interrupt stops
    the inner exit, even at its first line, the outer one continues. So what undoes a change may run twice.
    """

    def __init__(self) -> None:
        self._steps: list[Step] = []

    def __enter__(self) -> "Undo":
        return self

    def __exit__(self, kind: Any = None, error: BaseException | None = None, trace: Any = None) -> None:
        """Undo the changes that are left."""
        if not isinstance(error, Exception):
            _finish_contexts(error)
        wrong: Exception | None = None
        while self._steps:
            try:
                self._steps[-1]()
            except Exception as found:  # noqa: BLE001, raised when all else is undone
                wrong = wrong or found
            self._steps.pop()
        # An interrupt between the last line of `with LOCK` and its end leaves the lock held.
        while owned(LOCK):
            LOCK.release()
        if wrong is not None:
            raise wrong

    def later(self, step: Step) -> None:
        """Note the function that undoes the change about to be made."""
        self._steps.append(step)


def _finish_contexts(error: BaseException | None) -> None:
    """Let contexts made of generators end now if an interrupt came as they were entered.

    Nothing leaves such a context. Its generator would end when the error is forgotten, after all else has been undone:
    torch has one that puts a mode of ``__torch_function__`` back.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def keep_modes(undo: Undo) -> None:
    """Note this thread's grad mode, function modes and guards, which interrupted contexts may fail to restore."""
    grad, modes, depth, hooks = torch.is_grad_enabled(), function_modes(), guards.depth(), saving_hooks_disabled()

    def put_back() -> None:
        hooks()
        guards.back_to(depth)
        set_grad_enabled(grad)
        put_function_modes(modes)

    undo.later(put_back)


def keep_autocast(undo: Undo, devices: dict[str, torch.dtype]) -> None:
    """Note the state of autocast, given its dtype on each device type where it is on."""
    cache, depth = torch.is_autocast_cache_enabled(), torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()

    def put_back() -> None:
        for device, dtype in devices.items():
            torch.set_autocast_enabled(device, True)
            torch.set_autocast_dtype(device, dtype)
        torch.set_autocast_cache_enabled(cache)
        while torch.autocast_increment_nesting() > depth:
            torch.autocast_decrement_nesting()
            torch.autocast_decrement_nesting()
        torch.autocast_decrement_nesting()

    undo.later(put_back)
