"""MNIST and what the paper makes of it: digits stacked as colours, and coloured digits."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchvision.datasets import MNIST

from common.data import DataError, to_pixels


class Digits(NamedTuple):
    """Images, uint8 of shape (n, 28, 28), and labels, int64 of shape (n,)."""

    images: Tensor
    labels: Tensor


def load_digits(folder: Path, *, train: bool) -> Digits:
    """One half of MNIST from a folder in torchvision's layout, downloaded where it is absent.

    Args:
        folder: Holds MNIST/raw.
        train: The 60,000 images to train on; otherwise the 10,000 to test on.

    Returns:
        The digits, on the CPU.

    Raises:
        DataError: The files are damaged, or absent and cannot be downloaded.
    """
    raw = folder / "MNIST" / "raw"
    try:
        absent = not MNIST(str(folder), download=False)._check_exists()
    except RuntimeError:
        absent = True
    except Exception as error:
        raise _damaged(raw, error) from error
    try:
        data = MNIST(str(folder), train=train, download=absent)
    except Exception as error:
        if not absent:
            raise _damaged(raw, error) from error
        raise DataError(
            f"There is no MNIST in {raw}, and it cannot be downloaded there ({error}). Give the folder that holds "
            f"MNIST/raw with --data, or repeat the command with a connection and a folder that can be written to."
        ) from error
    digits = Digits(data.data, data.targets)
    if digits.images.shape != (len(digits.labels), 28, 28) or not len(digits.labels):
        raise _damaged(raw, f"{tuple(digits.images.shape)} images for {len(digits.labels)} labels")
    return digits


def _damaged(raw: Path, reason: object) -> DataError:
    return DataError(
        f"The files in {raw} are not MNIST ({reason or 'they end too early'}). Delete that folder to download it "
        f"again, or give another one with --data."
    )


def pad_to_32(images: Tensor) -> Tensor:
    """Two black pixels on every side, for the nets that end at 32 × 32."""
    return pad(images, (2, 2, 2, 2), value=-1.0)


def sample_digits(size: int, images: Tensor) -> Tensor:
    """Digits drawn at random, by torch's global generator.

    Args:
        size: Number of samples.
        images: Digits, uint8 of shape (n, 28, 28).

    Returns:
        Shape (size, 1, 28, 28), in [-1, 1].
    """
    return to_pixels(images[torch.randint(len(images), (size, 1), device=images.device)])


def sample_stacked(size: int, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Three digits drawn at random, one in each colour: section 3.3.1.

    Args:
        size: Number of samples.
        images: Digits, uint8 of shape (n, 28, 28).
        generator: Draws them; torch's global one where there is none.

    Returns:
        Shape (size, 3, 32, 32), in [-1, 1].
    """
    chosen = torch.randint(len(images), (size, 3), device=images.device, generator=generator)
    return pad_to_32(to_pixels(images[chosen]))


def crop_to_28(images: Tensor) -> Tensor:
    """Undoes `pad_to_32`."""
    return images[..., 2:-2, 2:-2]


def sample_colored(size: int, images: Tensor, *, color_std: float = 0.5, noise_std: float = 0.2) -> Tensor:
    """X = clip(I · C + (I - 1) + ε, -1, 1), with C ~ N(0, 0.5²) for each colour of an image: Appendix F.1.

    I is a digit scaled to [0, 1], and ε ~ N(0, 0.2²) for each pixel and colour. Drawn from torch's global generator.

    Args:
        size: Number of samples.
        images: Digits, uint8 of shape (n, 28, 28).
        color_std: Of C.
        noise_std: Of ε.

    Returns:
        Shape (size, 3, 32, 32), in [-1, 1].
    """
    device = images.device
    chosen = torch.randint(len(images), (size, 1), device=device)
    digit = pad(images[chosen].float() / 255, (2, 2, 2, 2))
    color = color_std * torch.randn(size, 3, 1, 1, device=device)
    noise = noise_std * torch.randn(size, 3, 32, 32, device=device)
    return (digit * color + (digit - 1) + noise).clamp(-1, 1)
