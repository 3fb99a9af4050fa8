"""The user's own objects in float64 for a while, where float32 is too coarse for a difference to say anything.

Copies would leave out what closures, hooks and wrappers lead to. These are the live tensors with other memory, and all
of it is put back.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..evaluation.autocast import autocast_dtypes
from ..live.snapshot import Snapshot
from ..loss import UnrolledGeneratorLoss
from ..run import Known


def may_be_double(tensors: list[Tensor]) -> bool:
    """Whether these are of less than 64 bits, and could be of 64: nothing casts them down again."""
    devices = {t.device.type for t in tensors}
    coarse = any(t.is_floating_point() and t.itemsize < 8 for t in tensors)
    return coarse and "mps" not in devices and not autocast_dtypes(devices)


@contextmanager
def in_double(unrolled: UnrolledGeneratorLoss, *others: Any) -> Iterator[UnrolledGeneratorLoss]:
    """Every tensor that can be reached from a loss and others in float64, what is made new as well."""
    before = torch.get_default_dtype()
    with Snapshot([unrolled, *others], names=True) as snapshot:
        try:
            torch.set_default_dtype(torch.float64)
            for one in snapshot.objects():
                if isinstance(one, Tensor) and one.is_floating_point() and one.itemsize < 8:
                    one.data = one.data.double()
            twin = copy.copy(unrolled)
            # What it remembers of its parts holds for them as they were.
            twin._known = Known(None)
            yield twin
        finally:
            torch.set_default_dtype(before)
