"""Functions of autograd as users write them: without a second derivative, or with a wrong one."""

import torch
from checks import warm_world
from torch import nn


class Once(torch.autograd.Function):
    """tanh, as a compiled or fused operator has it: one derivative."""

    @staticmethod
    def forward(ctx, x):
        y = x.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        return grad * (1 - y * y)


class OnceNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 5), nn.Linear(5, 1)

    def forward(self, x):
        return self.b(Once.apply(self.a(x)))


def once_world():
    world, D = warm_world(), OnceNet().double()
    world.discriminator, world.optimizer = D, torch.optim.Adam(D.parameters(), lr=0.02, betas=(0.5, 0.9))
    return world.warm()


class Silent(torch.autograd.Function):
    """tanh whose backward forgets that its slope depends on x: a second derivative that is zero."""

    @staticmethod
    def forward(ctx, x):
        ctx.slope = 1 - x.tanh() ** 2
        return x.tanh()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.slope
