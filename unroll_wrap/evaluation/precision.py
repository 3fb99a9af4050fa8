"""The precision that a loss is computed in, what rounding does to tensors, and the length of a gradient."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

import torch
from torch import Tensor

from ..live.snapshot import Snapshot
from .autocast import autocast_dtypes


def precision(tensors: Iterable[Tensor]) -> float:
    """Return the largest machine epsilon among the dtypes of the tensors and those of autocast on their devices."""
    used = {(t.dtype, t.device.type) for t in tensors}
    dtypes = {*(dtype for dtype, _ in used), *autocast_dtypes(device for _, device in used).values()}
    return max(torch.finfo(dtype).eps for dtype in dtypes)


def length(tensors: Iterable[Tensor | None]) -> float:
    """Return ‖·‖₂ of all entries together; None counts as zero."""
    return lengths(tensors)[0]


def lengths(*several: Iterable[Tensor | None]) -> list[float]:
    """Return ``length`` of each of several iterables, which waits for the device once."""
    # Not in float64, which Apple's GPUs do not have; and plain: a class of the user's may have methods of its own.
    norms = [
        [
            torch.linalg.vector_norm(t.detach().as_subclass(Tensor), dtype=torch.promote_types(t.dtype, torch.float32))
            for t in tensors
            if t is not None
        ]
        for tensors in several
    ]
    every = [n for of_one in norms for n in of_one]
    widest = max(every, key=lambda n: n.itemsize, default=None)
    found = iter(() if widest is None else torch.stack([n.to(widest) for n in every]).tolist())
    return [math.hypot(*islice(found, len(of_one))) for of_one in norms]


@contextmanager
def rounded(tensors: Sequence[Tensor], unit: float, generator: torch.Generator) -> Iterator[None]:
    """Change the tensors in their last bit or two for a while, as rounding to the precision ``unit`` might."""
    with Snapshot(tensors):
        for t in tensors:
            noise = torch.rand(t.shape, generator=generator).to(t) - 0.5
            t.data.mul_(1 + 4 * unit * noise)
        yield
