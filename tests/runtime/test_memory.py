"""Which tensors lie in the same memory, on devices with addresses and without."""

import numpy
import torch

from unroll_wrap.live.memory import address, overlapping, spans


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


def test_two_storages_may_overlap():
    array = numpy.zeros(32)
    part, whole, behind = (torch.from_numpy(a) for a in (array[8:12], array, array[12:]))
    assert overlapping([whole, behind], spans([part])) == [whole]


def test_spans_are_joined_and_those_between_are_free():
    t = torch.zeros(10)
    assert spans([t[4:6], t[0:3], t[2:4], t[8:]]) == spans([t[:6], t[9:], t[8:9]])
    assert overlapping([t[6:8]], spans([t[:6], t[8:]])) == []
    assert len(overlapping([t[5:7], t[7:9], t[3]], spans([t[:6], t[8:]]))) == 3
    meta = torch.empty(4, device="meta")
    assert overlapping([meta[2:], torch.empty(4, device="meta")], spans([meta[:3]]))[0].shape == (2,)
