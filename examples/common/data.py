"""Data sets whose true distribution is known, and pixels as the networks see them."""

import math

import torch
from torch import Tensor


class DataError(Exception):
    """A data set that cannot be had; the message says why and what to do."""


def ring_centers(modes: int = 8, radius: float = 2.0, *, endpoint: bool = False) -> Tensor:
    """c_i = radius · (cos 2πi/modes, sin 2πi/modes).

    Args:
        modes: Number of rows returned.
        radius: Distance of every centre from the origin.
        endpoint: Space the angles from 0 to 2π inclusive, so that the last centre repeats the first. The
            authors' public notebook does; it leaves `modes - 1` distinct centres, one with double weight.

    Returns:
        A tensor of shape (modes, 2).
    """
    angles = 2 * math.pi * torch.arange(modes) / (modes - 1 if endpoint else modes)
    return radius * torch.stack([angles.cos(), angles.sin()], dim=1)


def square_centers(side: int = 5, reach: float = 2.0) -> Tensor:
    """The side² points of a square grid that spans |x|, |y| ≤ reach."""
    line = torch.linspace(-reach, reach, side)
    return torch.cartesian_prod(line, line)


def sample_mixture(size: int, centers: Tensor, std: float, generator: torch.Generator | None = None) -> Tensor:
    """X = c_i + std · ε with i uniform over the rows of `centers` and ε ~ N(0, I).

    Args:
        size: Number of samples.
        centers: Means of the Gaussians, shape (modes, dimensions); the samples are made on its device.
        std: Standard deviation of every Gaussian in every dimension.
        generator: Draws both; torch's global one where there is none.

    Returns:
        A tensor of shape (size, dimensions).
    """
    chosen = torch.randint(len(centers), (size,), device=centers.device, generator=generator)
    return centers[chosen] + std * torch.randn(size, centers.shape[1], device=centers.device, generator=generator)


def to_pixels(images: Tensor) -> Tensor:
    """X / 127.5 - 1: from uint8 to [-1, 1]."""
    return images.float() / 127.5 - 1


def to_bytes(pixels: Tensor) -> Tensor:
    """Undoes `to_pixels`."""
    return ((pixels + 1) * 127.5).round().clamp(0, 255).byte().cpu()
