"""The precision that a loss is computed in, what rounding does to tensors, and the length of a gradient."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

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
    # Not in float64, which Apple's GPUs do not have; and plain: a class of the user's may have methods of its own.
    norms = [
        torch.linalg.vector_norm(t.detach().as_subclass(Tensor), dtype=torch.promote_types(t.dtype, torch.float32))
        for t in tensors
        if t is not None
    ]
    return math.hypot(*torch.stack([n.to(norms[0]) for n in norms]).tolist()) if norms else 0.0


@contextmanager
def rounded(tensors: Sequence[Tensor], unit: float, generator: torch.Generator) -> Iterator[None]:
    """Change the tensors in their last bit or two for a while, as rounding to the precision ``unit`` might."""
    with Snapshot(tensors):
        for t in tensors:
            noise = torch.rand(t.shape, generator=generator).to(t) - 0.5
            t.data.mul_(1 + 4 * unit * noise)
        yield
