"""Quality and diversity as separate numbers: two sets of samples compared by their nearest neighbours."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance


class Fidelity(NamedTuple):
    """Precision and recall of Kynkäänniemi et al. (2019), density and coverage of Naeem et al. (2020).

    Attributes:
        precision: The share of the model's samples that lie within reach of some sample of the data.
        recall: The share of the data's samples that lie within reach of some sample of the model.
        density: Of how many of the data's samples a sample of the model lies within reach, in units of `neighbours`.
        coverage: The share of the data's samples that have a sample of the model within their reach.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def fidelity(model: Tensor, data: Tensor, *, neighbours: int = 5) -> Fidelity:
    """The four measures. The reach of a sample is the distance to its `neighbours`-th nearest in its own set.

    Args:
        model: Features of the model's samples, shape (n, dimensions).
        data: Features of the data's samples, shape (m, dimensions).
        neighbours: 5, the later paper's choice for all four; the earlier one had 3.

    Returns:
        Numbers from 0 to 1, density excepted, which may exceed 1. Two sets from one distribution have a density and,
        with 5 neighbours, a coverage near 1.
    """
    distance = torch.cdist(model, data)
    near_data = distance <= _reach(data, neighbours)
    near_model = distance <= _reach(model, neighbours).unsqueeze(1)
    return Fidelity(
        precision=float(near_data.any(dim=1).double().mean()),
        recall=float(near_model.any(dim=0).double().mean()),
        density=float(near_data.sum(dim=1).double().mean()) / neighbours,
        coverage=float(near_data.any(dim=0).double().mean()),
    )


def _reach(samples: Tensor, neighbours: int) -> Tensor:
    # The nearest of all is the sample itself.
    return torch.cdist(samples, samples).kthvalue(neighbours + 1, dim=1).values


def frechet_distance(network: nn.Module, model: Tensor, data: Tensor) -> float:
    """‖μ - μ'‖² + Tr(Σ + Σ' - 2 (Σ Σ')^½) of the Gaussians with the moments of both sets' features; FID by any network.

    Args:
        network: From images to features, `num_features` of them.
        model: The model's samples, shape (n, ...).
        data: The data's samples, shape (m, ...).

    Returns:
        A number that depends on the scale of the features: it compares with other sets of the same features only.
    """
    distance = FrechetInceptionDistance(feature=network).to(model.device)
    for images, real in ((data, True), (model, False)):
        for batch in images.split(512):
            distance.update(batch, real=real)
    return float(distance.compute())


def pair_distances(images: Tensor, pairs: int, *, seed: int = 2017) -> Tensor:
    """‖x_i - x_j‖ for random pairs i ≠ j: section 3.4.2.

    Args:
        images: Shape (n, ...).
        pairs: Number of pairs.
        seed: Of the pairs, so that every set of n images is asked about the same ones.

    Returns:
        Shape (pairs,).
    """
    generator = torch.Generator().manual_seed(seed)
    one = torch.randint(len(images), (pairs,), generator=generator)
    other = (one + torch.randint(1, len(images), (pairs,), generator=generator)) % len(images)
    flat = images.flatten(1)
    return (flat[one.to(flat.device)] - flat[other.to(flat.device)]).norm(dim=1)
