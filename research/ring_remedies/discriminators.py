"""Remedies that change D: spectral normalisation, packing and minibatch standard deviation.

Each is D's hidden layers as they are in the plain game, with a change on top.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

import mixture_of_gaussians as ring
from common.nets import mlp

PACK = 2


def plain(config: ring.Config) -> nn.Module:
    """X → hidden → 1 logit."""
    return mlp((2, *config.d_hidden, 1), gain=config.gain)


def spectral(config: ring.Config) -> nn.Module:
    """Every linear layer divided by its largest singular value (Miyato et al. 2018)."""
    D = plain(config)
    for layer in D:
        if isinstance(layer, nn.Linear):
            spectral_norm(layer)
    return D


def packed(config: ring.Config) -> nn.Module:
    """One logit for two samples at once (Lin et al. 2018)."""
    return nn.Sequential(
        nn.Unflatten(0, (-1, PACK)), nn.Flatten(1), mlp((2 * PACK, *config.d_hidden, 1), gain=config.gain)
    )


class BatchSpread(nn.Module):
    """Adds a feature: the standard deviation of the others over the batch, in the mean (Karras et al. 2018)."""

    def forward(self, x: Tensor) -> Tensor:
        """From (n, features) to (n, features + 1)."""
        spread = (x.var(dim=0, unbiased=False) + 1e-8).sqrt().mean()
        return torch.cat([x, spread.expand(len(x), 1)], dim=1)


def spread(config: ring.Config) -> nn.Module:
    """The spread of the last hidden layer beside its features."""
    *hidden, last = mlp((2, *config.d_hidden, 1), gain=config.gain)
    wider = nn.Linear(last.in_features + 1, 1)
    nn.init.orthogonal_(wider.weight, config.gain)
    nn.init.zeros_(wider.bias)
    return nn.Sequential(*hidden, BatchSpread(), wider)
