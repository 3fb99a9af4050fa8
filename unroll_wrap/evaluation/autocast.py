"""Autocast in an unroll: losses run under the caller's autocast, derivatives and updates outside it, as in a loop.

A float16 graph loses gradients below 6e-8, which a GradScaler prevents in a loop. Its factor is not known here, so an
unroll under float16 multiplies by a factor of its own, a power of two, and divides by it in float32.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .gradients import Factor


class Autocast:
    """The caller's autocast, as it is at the call."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        # The dtype that it computes in, by device type.
        self.dtypes = autocast_dtypes({"cpu", *(t.device.type for t in tensors)})
        self.active = bool(self.dtypes)
        half = torch.float16 in self.dtypes.values()
        self.first = Factor(2.0**16) if half else None  # For gradients of losses.
        # For gradients of gradients, whose graph divides cotangents by ``first``.
        self.second = Factor(2.0**40) if half else None

    def outside(self) -> AbstractContextManager[object]:
        """Return a context without autocast."""
        return _all(torch.autocast(d, enabled=False) for d in self.dtypes) if self.active else nullcontext()

    def inside(self) -> AbstractContextManager[object]:
        """Return a context with the caller's autocast but no cache, which would keep the weights of every step."""
        if not self.active:
            return nullcontext()
        return _all(torch.autocast(d, dtype=t, cache_enabled=False) for d, t in self.dtypes.items())

    def within(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``function``, wrapped to run under the caller's autocast."""
        if not self.active:
            return function

        def run(*args: Any) -> Any:
            with self.inside():
                return function(*args)

        return run


def autocast_dtypes(devices: Iterable[str]) -> dict[str, torch.dtype]:
    """Return the dtype that autocast computes in, for those device types where it is on."""
    # torch raises if it is asked whether autocast is on for a device type without autocast.
    known = (d for d in sorted(set(devices)) if d in ("cpu", "cuda") or torch.amp.is_autocast_available(d))
    return {d: torch.get_autocast_dtype(d) for d in known if torch.is_autocast_enabled(d)}


@contextmanager
def _all(contexts: Iterable[AbstractContextManager[Any]]) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield
