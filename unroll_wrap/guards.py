"""Guards that let one discriminator loss serve both its own training and an unroll, which differentiates through it.

Training code for a discriminator detaches ``fake``; inside an unroll, that would remove the second term of Eq. 12.
Replace ``fake.detach()`` by ``unroll_wrap.detach(fake)``, and ``torch.no_grad()`` by ``unroll_wrap.no_grad()``:
ordinary training is unchanged, and the unroll keeps the graph.
"""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor


class _Here(threading.local):
    depth = 0
    guarded: list[Tensor] | None = None  # What the loss that runs now has given to ``detach``.


_unrolling = _Here()


def is_unrolling() -> bool:
    """Return True while this thread runs a loss inside an unroll, where a loss must not change statistics or pools."""
    return _unrolling.depth > 0


def detach(tensor: Tensor) -> Tensor:
    """Return ``tensor`` itself inside an unroll, and ``tensor.detach()`` outside.

    It is meant for what the generator makes. What D computes is refused in the first call: D's own step depends on
    whether that is detached.

    Examples:
        >>> fake = torch.ones(2, requires_grad=True)
        >>> unroll_wrap.detach(fake).requires_grad
        False
        >>> with unroll_wrap.guards.unrolling():  # as around every loss in an unroll
        ...     unroll_wrap.is_unrolling(), unroll_wrap.detach(fake) is fake
        (True, True)
    """
    if not is_unrolling():
        return tensor.detach()
    if _unrolling.guarded is not None:
        _unrolling.guarded.append(tensor)
    return tensor


def no_grad() -> AbstractContextManager[object]:
    """Return a context that has no effect inside an unroll, and is ``torch.no_grad()`` outside."""
    return nullcontext() if is_unrolling() else torch.no_grad()


def depth() -> int:
    """Return how many ``unrolling`` contexts this thread is in."""
    return _unrolling.depth


def back_to(depth: int) -> None:
    """Set the number of ``unrolling`` contexts back, after an interrupt has left some open."""
    _unrolling.depth = depth
    if not depth:
        _unrolling.guarded = None


@contextmanager
def unrolling() -> Iterator[list[Tensor]]:
    """Let ``is_unrolling`` return True within this context, which can be nested, and yield what ``detach`` is given."""
    before, _unrolling.guarded = _unrolling.guarded, []
    _unrolling.depth += 1
    try:
        yield _unrolling.guarded
    finally:
        _unrolling.depth -= 1
        _unrolling.guarded = before
