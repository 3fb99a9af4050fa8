"""Torch's process-wide settings under which D can be differentiated twice, and put back.

The first unroll that needs a setting changes it, the last one of all threads puts back what it was before the first.
"""

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.utils import parametrize


class Setting:
    """A context that several threads may be in at a time.

    Args:
        change: makes the change, and returns what undoes it.
    """

    def __init__(self, change: Callable[[], Callable[[], Any]]) -> None:
        self._change = change
        self._lock = threading.Lock()
        self._inside = 0

    def __enter__(self) -> None:
        """Change it, unless another unroll has."""
        with self._lock:
            if self._inside == 0:
                self._undo = self._change()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        """Put it back, unless another unroll needs it."""
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._undo()
                del self._undo


def _use_math_attention() -> Callable[[], Any]:
    cuda = torch.backends.cuda
    before = (
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
        cuda.math_sdp_enabled(),
    )

    def use(flash: bool, mem_efficient: bool, cudnn: bool, math: bool) -> None:
        cuda.enable_flash_sdp(flash)
        cuda.enable_mem_efficient_sdp(mem_efficient)
        cuda.enable_cudnn_sdp(cudnn)
        cuda.enable_math_sdp(math)

    use(False, False, False, True)
    return lambda: use(*before)


def _leave_cudnn() -> Callable[[], Any]:
    before = torch._C._get_cudnn_enabled()
    # cudnn.flags() would reset the user's other choices to its own defaults.
    torch._C._set_cudnn_enabled(False)
    return lambda: torch._C._set_cudnn_enabled(before)


def _run_eagerly() -> Callable[[], Any]:
    stance = torch.compiler.set_stance("force_eager")  # from here on, not from __enter__ on
    return lambda: stance.__exit__(None, None, None)


def _forget_parametrizations() -> Callable[[], Any]:
    before = parametrize._cache_enabled, parametrize._cache
    # Inside parametrize.cached() a module answers with the weight of another step.
    parametrize._cache_enabled, parametrize._cache = 0, {}

    def undo() -> None:
        parametrize._cache_enabled, parametrize._cache = before

    return undo


math_attention = Setting(_use_math_attention)
no_cudnn = Setting(_leave_cudnn)
eager = Setting(_run_eagerly)
no_parametrization_cache = Setting(_forget_parametrizations)
