"""Other numbers near those that a step was recorded with, and whether two results are the same."""

from collections.abc import Sequence

import torch
from torch import Tensor


def varied_by(inputs: Sequence[Tensor], scale: float) -> list[Tensor]:
    """Other numbers nearby, always the same."""
    generator = torch.Generator().manual_seed(0)

    def one(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        factor = 1 + scale * torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
        return tensor * factor.to(tensor)

    return list(map(one, inputs))


def shifted(tensors: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Each with other numbers in it, and a copy of these."""
    for t in tensors:
        if t.is_floating_point():
            t.data.mul_(1.001)
    return [(t, t.detach().clone()) for t in tensors]


def same(one: Tensor, other: Tensor) -> bool:
    """To the last bit; NaN is NaN."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())


def close(one: Tensor, other: Tensor) -> bool:
    """Up to the order in which numbers are added."""
    if not one.is_floating_point() or one.numel() == 0:
        return same(one, other)
    tolerance = torch.finfo(one.dtype).eps ** 0.6
    size = other.detach().abs().max().nan_to_num().item()
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance * size, equal_nan=True)
