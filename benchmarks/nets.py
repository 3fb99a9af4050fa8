"""The paper's discriminators, each with a warm Adam and a batch: what every benchmark here is measured on.

The data are random tensors of the right shape, and D's Adam has taken some real steps on them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from unroll_wrap import Objective, minimax, non_saturating


class Scale(nn.Module):
    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def ring_discriminator() -> nn.Module:
    """Appendix A: x/4, one layer of 128, a logit."""
    D = nn.Sequential(Scale(1 / 4), nn.Linear(2, 128), nn.ReLU(), nn.Linear(128, 1))
    for linear in (D[1], D[3]):
        nn.init.orthogonal_(linear.weight, gain=0.8)
        # With the default biases some units are dead, v is 0 there, and a graph written by hand gives nan.
        nn.init.zeros_(linear.bias)
    return D


def conv_discriminator(channels: tuple[int, ...]) -> nn.Module:
    """Appendices D and E on 32 px: 3x3 convolutions of stride 2, BatchNorm, a leak of 0.3, a logit."""
    layers: list[nn.Module] = []
    for inputs, outputs in zip((3, *channels[:-1]), channels, strict=True):
        # No bias: BatchNorm takes it out again.
        conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.3)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * 4 * 4, 1))


@dataclass(frozen=True)
class Problem:
    title: str
    discriminator: Callable[[], nn.Module]
    shape: tuple[int, ...]  # of real and fake, the batch included
    objective: Objective
    steps: int  # the K of the targets
    lr: float
    small: bool = False  # worth compiling, and compiled within a minute or so
    jax: bool = True  # XLA's convolutions on a CPU are worth waiting for


NETS = {
    "ring": Problem("ring, Appendix A", ring_discriminator, (512, 2), minimax, steps=10, lr=1e-4, small=True),
    "stacked": Problem(
        "stacked MNIST, Appendix E at X=1/2",
        partial(conv_discriminator, (4, 8, 16)),
        (64, 3, 32, 32),
        non_saturating,
        steps=5,
        lr=2e-4,
        small=True,
    ),
    "cifar10": Problem(
        "CIFAR-10, Appendix D",
        partial(conv_discriminator, (64, 128, 256)),
        (64, 3, 32, 32),
        non_saturating,
        steps=5,
        lr=2e-4,
        jax=False,
    ),
}


@dataclass
class Setup:
    """A problem with D and its optimizer warm, and a batch at hand."""

    problem: Problem
    D: nn.Module
    optimizer: torch.optim.Optimizer
    real: Tensor
    fake: Tensor  # requires grad: the end of the generator's graph

    def params(self) -> list[Tensor]:
        return list(self.D.parameters())


def set_up(
    problem: Problem,
    dtype: torch.dtype = torch.float32,
    optimizer: Callable[..., torch.optim.Optimizer] | None = None,
    warm_up: int = 20,
    seed: int = 0,
    device: str = "cpu",
) -> Setup:
    """D after ``warm_up`` real steps, under the problem's own Adam or another optimizer."""
    torch.manual_seed(seed)
    D = problem.discriminator().to(device, dtype)
    make = optimizer or partial(torch.optim.Adam, lr=problem.lr, betas=(0.5, 0.999))
    moved = make(D.parameters())
    for _ in range(warm_up):
        real, fake = (scale * torch.randn(problem.shape, dtype=dtype).to(device) for scale in (1.0, 0.5))
        moved.zero_grad()
        problem.objective.d_loss(D, real, fake).backward()
        moved.step()
    return Setup(problem, D, moved, real, fake.requires_grad_())
