"""CIFAR-10."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.datasets import CIFAR10

from common.data import DataError, to_pixels


class Images(NamedTuple):
    """Images, uint8 of shape (n, 3, 32, 32), and labels, int64 of shape (n,)."""

    images: Tensor
    labels: Tensor


def load_images(folder: Path, *, train: bool) -> Images:
    """One half of CIFAR-10 from a folder in torchvision's layout, downloaded where it is absent.

    Args:
        folder: Holds cifar-10-batches-py.
        train: The 50,000 images to train on; otherwise the 10,000 to test on.

    Returns:
        The images, on the CPU.

    Raises:
        DataError: The files are damaged, or absent and cannot be downloaded.
    """
    batches = folder / CIFAR10.base_folder
    absent = not batches.exists()
    try:
        data = CIFAR10(str(folder), train=train, download=absent)
        images = Images(torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets))
    except Exception as error:
        if absent:
            raise DataError(
                f"There is no CIFAR-10 in {batches}, and it cannot be downloaded there ({error}). Give the folder that "
                f"holds {CIFAR10.base_folder} with --data, or repeat the command with a connection and a folder that "
                f"can be written to."
            ) from error
        raise DataError(
            f"The files in {batches} are not CIFAR-10 ({error}). Delete that folder to download it again, or give "
            f"another one with --data."
        ) from error
    return images


def sample_images(size: int, images: Tensor) -> Tensor:
    """Images drawn at random, by torch's global generator.

    Args:
        size: Number of samples.
        images: uint8 of shape (n, 3, 32, 32).

    Returns:
        Shape (size, 3, 32, 32), in [-1, 1].
    """
    return to_pixels(images[torch.randint(len(images), (size,), device=images.device)])
