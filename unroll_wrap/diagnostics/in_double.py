"""Put the user's own objects into float64 for a while, where float32 is too coarse for a conclusive difference.

Copies would miss what closures, hooks and wrappers refer to. So the live tensors get other memory in the meantime.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..evaluation.autocast import autocast_dtypes
from ..known import Known
from ..live.snapshot import Snapshot
from ..loss import UnrolledLoss


def may_be_double(tensors: list[Tensor]) -> bool:
    """Return whether some tensors have less than 64 bits, and both their devices and autocast allow 64."""
    devices = {t.device.type for t in tensors}
    coarse = any(t.is_floating_point() and t.itemsize < 8 for t in tensors)
    return coarse and "mps" not in devices and not autocast_dtypes(devices)


@contextmanager
def in_double(unrolled: UnrolledLoss, *others: Any) -> Iterator[UnrolledLoss]:
    """Yield a twin of the loss while all tensors within reach of the arguments, and all new ones, are in float64."""
    before = torch.get_default_dtype()
    with Snapshot([unrolled, *others], names=True) as snapshot:
        try:
            torch.set_default_dtype(torch.float64)
            for one in snapshot.objects():
                if isinstance(one, Tensor) and one.is_floating_point() and one.itemsize < 8:
                    one.data = one.data.double()
            twin = copy.copy(unrolled)
            # What the loss has found out about its parts holds only for their former tensors.
            twin._known = Known(None)
            yield twin
        finally:
            torch.set_default_dtype(before)
