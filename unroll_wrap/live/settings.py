"""Torch's process-wide settings under which D can be differentiated twice, and put back.

The first unroll that needs a setting changes it, the last one of all threads puts back what it was before the first.
No setting can be made private to a thread. Each loss of an unroll begins with the settings that it needs, even if
another thread has put back its own choice in between; what another thread runs meanwhile runs under them too.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.utils import parametrize

from .undo import LOCK, Undo


class Setting:
    """A choice of torch's that several threads may need at a time.

    Args:
        read: what it is now.
        put: make it that.
        wanted: what unrolls need, from what it was.
    """

    def __init__(self, read: Callable[[], Any], put: Callable[[Any], Any], wanted: Callable[[Any], Any]) -> None:
        self.read = read
        self.put = put
        self.wanted = wanted
        self._holders: set[object] = set()
        self._before: list[Any] = []

    def hold(self, undo: Undo) -> None:
        """Change it, unless another unroll has, until that is undone."""
        me = object()
        undo.later(lambda: self._leave(me))
        with LOCK:
            self._holders.add(me)
            if not self._before:
                self._before.append(self.read())
                self._now = self.wanted(self._before[0])
                self.put(self._now)

    def ensure(self) -> None:
        """Change it again, if another thread has changed it since."""
        if self.read() != self._now:
            self.put(self._now)

    def _leave(self, me: object) -> None:
        with LOCK:
            self._holders.discard(me)
            if self._before and not self._holders:
                self.put(self._before[0])
                self._before.clear()


def together(*settings: Setting) -> Setting:
    """Several that are always held at the same time, as one."""

    def put(values: Any) -> None:
        for setting, value in zip(settings, values, strict=True):
            setting.put(value)

    return Setting(
        lambda: [s.read() for s in settings],
        put,
        lambda values: [s.wanted(value) for s, value in zip(settings, values, strict=True)],
    )


def _kernels() -> tuple[bool, ...]:
    cuda = torch.backends.cuda
    return (
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
        cuda.math_sdp_enabled(),
    )


def _use_kernels(chosen: tuple[bool, ...]) -> None:
    cuda = torch.backends.cuda
    for enable, yes in zip(
        (cuda.enable_flash_sdp, cuda.enable_mem_efficient_sdp, cuda.enable_cudnn_sdp, cuda.enable_math_sdp),
        chosen,
        strict=True,
    ):
        enable(yes)


def _stance() -> Any:
    return sys.modules["torch._dynamo.eval_frame"]._stance


def _take_stance(stance: Any) -> None:
    sys.modules["torch._dynamo.eval_frame"]._set_stance(stance)


def _eagerly(_: Any) -> Any:
    return sys.modules["torch._dynamo.eval_frame"].DynamoStance("force_eager")


def _cache() -> tuple[int, Any]:
    return parametrize._cache_enabled, parametrize._cache


def _put_cache(cache: tuple[int, Any]) -> None:
    parametrize._cache_enabled, parametrize._cache = cache


math_attention = Setting(_kernels, _use_kernels, lambda _: (False, False, False, True))
# cudnn.flags() would reset the user's other choices to its own defaults.
no_cudnn = Setting(torch._C._get_cudnn_enabled, torch._C._set_cudnn_enabled, lambda _: False)
eager = Setting(_stance, _take_stance, _eagerly)
# Inside parametrize.cached() a module answers with the weight of another step.
no_parametrization_cache = Setting(_cache, _put_cache, lambda _: (0, {}))
