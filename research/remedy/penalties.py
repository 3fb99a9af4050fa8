"""Remedies that are losses: R1 (Mescheder et al. 2018) and WGAN-GP (Gulrajani et al. 2017)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from common.training import in_one_batch
from remedy.task import Task
from unroll_wrap import Objective

# Of D, real and fake: a term of D's loss.
Penalty = Callable[[nn.Module, Tensor, Tensor], Tensor]


def losses(task: Task, objective: Objective, penalty: Callable[[Task], Penalty] | None) -> Objective:
    """The objective on the task's batches, with the penalty beside D's loss."""
    if task.one_batch:
        objective = in_one_batch(objective)
    if penalty is None:
        return objective
    of_slope = penalty(task)

    def d_loss(D: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        return objective.d_loss(D, real, fake) + of_slope(D, real, fake)

    return Objective(d_loss, objective.g_loss)


def slopes(D: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """‖∇_x D(x)‖² of every sample, with a graph."""
    x = x.requires_grad_() if x.is_leaf else x
    (gradient,) = torch.autograd.grad(D(x).sum(), x, create_graph=True)
    return gradient.flatten(1).square().sum(dim=1)


def r1(task: Task) -> Penalty:
    """γ/2 · E ‖∇D(real)‖², where D sees what it sees in its loss."""

    def penalty(D: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        def beside_fake(x: Tensor) -> Tensor:
            return D(torch.cat([x, fake]))[: len(x)]

        return task.r1_weight / 2 * slopes(beside_fake if task.one_batch else D, real.clone()).mean()

    return penalty


def gradient_penalty(task: Task) -> Penalty:
    """λ · E (‖∇D(x)‖ - 1)² between real and fake."""

    def penalty(D: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        share = torch.rand(len(real), *(1 for _ in real.shape[1:]))
        slope = (slopes(D, share * real + (1 - share) * fake) + 1e-12).sqrt()
        return task.gp_weight * (slope - 1).square().mean()

    return penalty
