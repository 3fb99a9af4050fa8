"""Which tensors lie in the same memory, on devices with addresses and without."""

import numpy
import torch

from unroll_wrap.live.memory import address


def test_views_and_arrays_share_an_address():
    t = torch.randn(4, 3)
    assert address(t[1:]) == address(t.T) == address(t) != address(t.clone())
    array = numpy.zeros(5)
    one, other = torch.from_numpy(array), torch.from_numpy(array)
    assert one.untyped_storage()._cdata != other.untyped_storage()._cdata
    assert address(one) == address(other[2:])


def test_without_addresses_the_storage_counts():
    """Tensors on meta have none, as those of XLA."""
    one, other = (torch.empty(4, device="meta") for _ in range(2))
    assert one.data_ptr() == other.data_ptr() == 0
    assert address(one[2:]) == address(one) != address(other)
