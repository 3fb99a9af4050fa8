"""Autocast inside an unroll: losses under it, as the caller has it, and derivatives and updates outside, as in a loop.

A float16 graph loses gradients below 6e-8, which is what a GradScaler is for. Its factor is its own, so an unroll under
float16 multiplies by one of its own, a power of two, and divides in float32.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .gradients import Factor


class Autocast:
    """The caller's autocast, as it is at the call.

    Attributes:
        dtypes: what it computes in, by type of device.
        active: whether there is any.
        first: the factor for gradients of losses.
        second: for gradients of those, which a float16 graph divides by ``first`` on the way in.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.dtypes = autocast_dtypes({"cpu", *(t.device.type for t in tensors)})
        self.active = bool(self.dtypes)
        half = torch.float16 in self.dtypes.values()
        self.first, self.second = (Factor(2.0**16), Factor(2.0**40)) if half else (None, None)

    def outside(self) -> AbstractContextManager[object]:
        """Without autocast."""
        return _all(torch.autocast(d, enabled=False) for d in self.dtypes) if self.active else nullcontext()

    def inside(self) -> AbstractContextManager[object]:
        """As the caller has it, but for its cache of weights, which would keep the weights of every step."""
        if not self.active:
            return nullcontext()
        return _all(torch.autocast(d, dtype=t, cache_enabled=False) for d, t in self.dtypes.items())

    def within(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function of the user's that runs as the caller has it."""
        if not self.active:
            return function

        def run(*args: Any) -> Any:
            with self.inside():
                return function(*args)

        return run


def autocast_dtypes(devices: Iterable[str]) -> dict[str, torch.dtype]:
    """What autocast computes in, on those of these types of devices where it is on."""
    # Of a device without autocast it must not be asked whether it is on.
    known = (d for d in sorted(set(devices)) if d in ("cpu", "cuda") or torch.amp.is_autocast_available(d))
    return {d: torch.get_autocast_dtype(d) for d in known if torch.is_autocast_enabled(d)}


@contextmanager
def _all(contexts: Iterable[AbstractContextManager[Any]]) -> Any:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield
