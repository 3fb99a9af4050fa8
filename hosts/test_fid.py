"""The recipe for FID: Fréchet's distance of Gaussians as the textbook has it, on features of a small network."""

import numpy
import pytest
import torch
from fid import fid
from scipy.linalg import sqrtm
from torch import nn


class Features(nn.Module):
    """Means of the four quarters of an image."""

    num_features = 4

    def forward(self, images):
        assert images.min() >= 0 and images.max() <= 1
        return nn.functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), 2).flatten(1)


class Bright(nn.Module):
    """Noise as an image, moved towards white; without a batch's statistics if it is asked in evaluation mode."""

    def __init__(self, shift):
        super().__init__()
        self.shift, self.norm = shift, nn.BatchNorm2d(3)

    def forward(self, z):
        self.norm(z)
        return (z + self.shift).clamp(-1, 1)


def textbook(a, b):
    """‖μ - ν‖² + tr(A + B - 2 (A B)^½)."""
    (mu, A), (nu, B) = ((x.mean(0), numpy.cov(x, rowvar=False)) for x in (a, b))
    return ((mu - nu) ** 2).sum() + numpy.trace(A + B - 2 * sqrtm(A @ B).real)


def images(seed):
    torch.manual_seed(seed)
    return [(torch.rand(16, 3, 8, 8) * 1.6 - 0.8) for _ in range(4)]


@pytest.mark.filterwarnings("ignore")
def test_it_is_the_textbooks():
    found, batches = {}, images(0)
    for shift in (0.0, 0.1):
        G, drawn = Bright(shift), iter(images(1))
        G.train()
        found[shift] = fid(G, lambda n, drawn=drawn: next(drawn), batches, feature=Features())
        assert G.training and int(G.norm.num_batches_tracked) == 0
        fakes = torch.cat([(x + shift).clamp(-1, 1) for x in images(1)])
        features = [Features()((x + 1) / 2).double().numpy() for x in (torch.cat(batches), fakes)]
        assert found[shift] == pytest.approx(textbook(*features), rel=1e-3, abs=1e-6)
    # The control.
    assert found[0.1] > 5 * found[0.0]
