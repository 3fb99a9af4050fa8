"""One discriminator loss for both uses: its own training, and the unroll that differentiates through it.

A discriminator's training code detaches ``fake``; inside an unroll that cut would remove the second term of
Eq. 12. Replace ``fake.detach()`` by ``unroll_wrap.detach(fake)``, or ``torch.no_grad()`` by
``unroll_wrap.no_grad()``: ordinary training is unchanged, and the unroll stays attached.
"""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor


class _Depth(threading.local):
    depth = 0


_unrolling = _Depth()


def is_unrolling() -> bool:
    """True while this thread runs a loss inside an unroll: there, leave statistics and pools alone."""
    return _unrolling.depth > 0


def detach(tensor: Tensor) -> Tensor:
    """``tensor`` itself inside an unroll, ``tensor.detach()`` outside."""
    return tensor if is_unrolling() else tensor.detach()


def no_grad() -> AbstractContextManager[object]:
    """No effect inside an unroll, ``torch.no_grad()`` outside."""
    return nullcontext() if is_unrolling() else torch.no_grad()


def depth() -> int:
    """How many such spans this thread is in."""
    return _unrolling.depth


def back_to(depth: int) -> None:
    """Leave those that an interrupt has left open."""
    _unrolling.depth = depth


@contextmanager
def unrolling() -> Iterator[None]:
    """The span that ``is_unrolling`` reports; nests."""
    _unrolling.depth += 1
    try:
        yield
    finally:
        _unrolling.depth -= 1
