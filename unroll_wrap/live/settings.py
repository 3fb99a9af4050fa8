"""Change process-wide settings of torch so that D can be differentiated twice, and restore them.

The first unroll that needs a setting changes it, and the last one of all threads restores it. No setting can be private
to a thread: what other threads run meanwhile runs under it too, and another thread may change it, so every loss of an
unroll begins by setting what it needs again.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from ..torch_private import (
    cudnn_enabled,
    eager_stance,
    enable_cudnn,
    parametrization_cache,
    put_parametrization_cache,
    stance,
    take_stance,
)
from .undo import LOCK, Undo


@dataclass(eq=False)
class Setting:
    """A setting of torch that several threads may need at the same time."""

    read: Callable[[], Any]  # Returns the current value.
    put: Callable[[Any], Any]  # Sets a value.
    wanted: Callable[[Any], Any]  # Maps the earlier value to the one that unrolls need.
    _holders: set[object] = field(default_factory=set, init=False)
    _before: list[Any] = field(default_factory=list, init=False)

    def hold(self, undo: Undo) -> None:
        """Hold the setting at the wanted value until ``undo`` restores it."""
        me = object()
        undo.later(lambda: self._leave(me))
        with LOCK:
            self._holders.add(me)
            if not self._before:
                self._before.append(self.read())
                self._now = self.wanted(self._before[0])
                self.put(self._now)

    def ensure(self) -> None:
        """Set the wanted value again if another thread has changed it."""
        if self.read() != self._now:
            self.put(self._now)

    def _leave(self, me: object) -> None:
        with LOCK:
            self._holders.discard(me)
            if self._before and not self._holders:
                self.put(self._before[0])
                self._before.clear()


_KERNELS = ("flash", "mem_efficient", "cudnn", "math")


def _kernels() -> tuple[bool, ...]:
    return tuple(getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in _KERNELS)


def _use_kernels(chosen: tuple[bool, ...]) -> None:
    for name, yes in zip(_KERNELS, chosen, strict=True):
        getattr(torch.backends.cuda, f"enable_{name}_sdp")(yes)


math_attention = Setting(_kernels, _use_kernels, lambda _: (False, False, False, True))
# cudnn.flags() would reset the user's other choices to its own defaults.
no_cudnn = Setting(cudnn_enabled, enable_cudnn, lambda _: False)
eager = Setting(stance, take_stance, lambda _: eager_stance())
# Inside parametrize.cached() a module would use the weight that an earlier step has cached.
no_parametrization_cache = Setting(parametrization_cache, put_parametrization_cache, lambda _: (0, {}))
