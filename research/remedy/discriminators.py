"""Remedies that change D: spectral normalisation, packing and minibatch standard deviation.

Each is the task's own D with a change.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from remedy.task import Task

PACK = 2


def plain(task: Task) -> nn.Module:
    """The task's own."""
    return task.discriminator()


def spectral(task: Task) -> nn.Module:
    """Every linear layer and convolution divided by its largest singular value (Miyato et al. 2018)."""
    D = task.discriminator()
    for layer in D:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            spectral_norm(layer)
    return D


def packed(task: Task) -> nn.Module:
    """One logit for two samples at once, colour beside colour where they are images (Lin et al. 2018)."""
    return nn.Sequential(nn.Unflatten(0, (-1, PACK)), nn.Flatten(1, 2), task.discriminator(together=PACK))


class BatchSpread(nn.Module):
    """Adds a feature: the standard deviation of the others over the batch, in the mean (Karras et al. 2018).

    Args:
        batch: Of real samples, or of fakes: where both come as one, each half has a spread of its own.
    """

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch

    def forward(self, x: Tensor) -> Tensor:
        """From (n, features) to (n, features + 1)."""
        halves = x.unflatten(0, (-1, self.batch))
        spread = (halves.var(dim=1, unbiased=False) + 1e-8).sqrt().mean(dim=1)
        return torch.cat([x, spread.repeat_interleave(self.batch).unsqueeze(1)], dim=1)


def spread(task: Task) -> nn.Module:
    """The spread of the last hidden layer beside its features."""
    *hidden, last = task.discriminator()
    wider = nn.Linear(last.in_features + 1, 1)
    task.start(wider)
    return nn.Sequential(*hidden, BatchSpread(task.config.batch), wider)
