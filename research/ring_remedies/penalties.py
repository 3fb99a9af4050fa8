"""Remedies that are losses: R1 (Mescheder et al. 2018) and WGAN-GP (Gulrajani et al. 2017)."""

import torch
from torch import Tensor, nn

from unroll_wrap import Objective, non_saturating, wasserstein

R1_WEIGHT = 1.0
GP_WEIGHT = 0.1  # that of the authors' toy script


def slopes(D: nn.Module, x: Tensor) -> Tensor:
    """‖∇_x D(x)‖² of every sample, with a graph."""
    x = x.requires_grad_() if x.is_leaf else x
    (gradient,) = torch.autograd.grad(D(x).sum(), x, create_graph=True)
    return gradient.square().sum(dim=1)


def r1_d_loss(D: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """D's loss and γ/2 · E ‖∇D(real)‖²."""
    return non_saturating.d_loss(D, real, fake) + R1_WEIGHT / 2 * slopes(D, real.clone()).mean()


def gp_d_loss(D: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """The critic's loss and λ · E (‖∇D(x)‖ - 1)² between real and fake."""
    share = torch.rand(len(real), 1)
    slope = (slopes(D, share * real + (1 - share) * fake) + 1e-12).sqrt()
    return wasserstein.d_loss(D, real, fake) + GP_WEIGHT * (slope - 1).square().mean()


r1 = Objective(r1_d_loss, non_saturating.g_loss)
wgan_gp = Objective(gp_d_loss, wasserstein.g_loss)
