"""Vary the numbers that a step was recorded with, and compare results."""

from collections.abc import Sequence

import torch
from torch import Tensor


def varied_by(inputs: Sequence[Tensor], scale: float) -> list[Tensor]:
    """Return the tensors with numbers that are slightly different, and the same in every call."""
    generator = torch.Generator().manual_seed(0)

    def factor(tensor: Tensor) -> Tensor:
        return (1 + scale * torch.rand(tensor.shape, generator=generator, dtype=torch.float64)).to(tensor)

    return [t * factor(t) if t.is_floating_point() else t for t in inputs]


def shifted(tensors: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Change the numbers in each tensor in place, and return each with a copy of its new numbers."""
    for t in tensors:
        if t.is_floating_point():
            t.data.mul_(1.001)
    return [(t, t.detach().clone()) for t in tensors]


def same(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal to the last bit; NaN equals NaN."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())


def close(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal up to the order of summation."""
    if not one.is_floating_point() or one.numel() == 0:
        return same(one, other)
    tolerance = torch.finfo(one.dtype).eps ** 0.6
    size = other.detach().abs().max().nan_to_num().item()
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance * size, equal_nan=True)
