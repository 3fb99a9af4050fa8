"""The table of problems: discriminators, generators, batches and losses that an unroll has to get right.

What a row is: `worlds.py`. Here are the ways in which a loss uses D; norms and other layers have files of their own.
"""

import module_problems  # noqa: F401
import norm_problems  # noqa: F401
import torch
from torch import nn
from torch.nn import functional as F
from worlds import (
    PROBLEMS,
    World,
    double,
    mlp_module,
    non_saturating_d,
    non_saturating_g,
    plain,
    points,
    problem,
    small_generator,
    softplus,
)

__all__ = [
    "PROBLEMS",
    "World",
    "double",
    "mlp_module",
    "non_saturating_d",
    "non_saturating_g",
    "points",
    "small_generator",
    "softplus",
]


@problem()
def mlp(factory):
    return plain(mlp_module(), factory)


@problem()
def leaky_in_place(factory):
    """In-place operations on activations."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 5), nn.Linear(5, 1)

        def forward(self, x):
            h = self.a(x)
            h += 0.1
            h *= 1.5
            return self.b(F.leaky_relu_(h, 0.2))

    return plain(Net(), factory)


@problem()
def dropout(factory):
    return plain(nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Dropout(0.4), nn.Linear(8, 1)), factory)


@problem()
def dead_relu(factory):
    """Two units far below zero on every input: their gradient is 0 in every step, so Adam's v == 0 exactly."""
    D = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 1))
    with torch.no_grad():
        D[0].bias[:3] = 4.0  # always on: the kink is not the point
        D[0].bias[3:] = -50.0
    return plain(D, factory)


@problem()
def tied(factory):
    """One parameter in two modules, once in the optimizer."""
    D = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))
    D[2].weight = D[0].weight
    return plain(D, factory)


@problem()
def two_groups(factory):
    """Two parameter groups with different learning rates."""
    G, D = small_generator(), double(mlp_module())
    groups = [{"params": D[0].parameters()}, {"params": D[2].parameters(), "lr": 0.004}]
    return World(D, factory(groups), G, points(G))


@problem()
def frozen_at_call(factory):
    """set_requires_grad(D, False) before the generator's step, as CycleGAN, BigGAN and Lightning have it."""
    world = plain(mlp_module(), factory)
    world.before_call = lambda: world.discriminator.requires_grad_(False)
    return world


@problem()
def frozen_from_the_start(factory):
    """freezeD: the optimizer owns the first layer's weight, which was never trainable and must not move."""
    D = mlp_module()
    D[0].weight.requires_grad_(False)
    world = plain(D, factory)
    world.frozen = [D[0].weight]
    return world


@problem()
def r1_on_reused_real(factory):
    """R1 on the passed batch itself, made to require grad by the loss: the steps must not see each other's graphs."""

    def d_loss(D, real, fake):
        real.requires_grad_()
        on_real = D(real)
        (slope,) = torch.autograd.grad(on_real.sum(), real, create_graph=True)
        return softplus(-on_real).mean() + softplus(D(fake)).mean() + 0.5 * slope.pow(2).sum(1).mean()

    return plain(mlp_module(), factory, d_loss=d_loss)


@problem()
def wgan_gp(factory):
    """A penalty at random points between real and fake: draws numbers and has third derivatives."""

    def d_loss(D, real, fake):
        alpha = torch.rand(real.shape[0], 1, dtype=real.dtype)
        between = alpha * real + (1 - alpha) * fake
        if not between.requires_grad:
            between.requires_grad_()
        (slope,) = torch.autograd.grad(D(between).sum(), between, create_graph=True)
        return D(fake).mean() - D(real).mean() + 10 * ((slope.pow(2).sum(1) + 1e-12).sqrt() - 1).pow(2).mean()

    def g_loss(D, real, fake):
        return -D(fake).mean()

    return plain(mlp_module(), factory, d_loss=d_loss, g_loss=g_loss)


class Headed(nn.Module):
    """A body with the usual head and a second one."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 5), nn.Tanh())
        self.head, self.other = nn.Linear(5, 1), nn.Linear(5, 1)

    def forward(self, x):
        return self.head(self.body(x))

    def code(self, x):
        return self.other(self.body(x))


@problem()
def unused_head(factory):
    """Parameters without a gradient: no decay, no step count."""
    return plain(Headed(), factory)


@problem()
def sometimes_used_head(factory):
    """The second head gets a gradient in some inner steps only, by a branch on the data."""

    def d_loss(D, real, fake):
        loss = non_saturating_d(D, real, fake)
        if real[0, 0].item() > 1.0:
            loss = loss + D.code(fake).pow(2).mean()
        return loss

    def g_loss(D, real, fake):
        return softplus(-D(fake)).mean() + 0.3 * softplus(D.code(fake)).mean()

    return plain(Headed(), factory, d_loss=d_loss, g_loss=g_loss, resample=True)


@problem()
def head_of_another_optimizer(factory):
    """InfoGAN: the head belongs to another optimizer, stays live, and gets its own gradient."""

    def d_loss(D, real, fake):
        return non_saturating_d(D, real, fake) + 0.2 * D.code(fake).pow(2).mean()

    def g_loss(D, real, fake):
        return softplus(-D(fake)).mean() + (D.code(fake) - 1).pow(2).mean()

    G, D = small_generator(), double(Headed())
    optimizer = factory([*D.body.parameters(), *D.head.parameters()])
    inputs = [*G.parameters(), *D.other.parameters()]
    return World(D, optimizer, G, points(G), d_loss, g_loss, inputs=inputs)


def pair_d(Ds, real, fake):
    a, b = Ds.values() if isinstance(Ds, dict) else Ds
    return non_saturating_d(a, real, fake) + 0.5 * non_saturating_d(b, real[:, :1], fake[:, :1])


def pair_g(Ds, real, fake):
    a, b = Ds.values() if isinstance(Ds, dict) else Ds
    return softplus(-a(fake)).mean() + softplus(-b(fake[:, :1])).mean()


def pair():
    return double(mlp_module()), double(nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1)))


@problem()
def two_discriminators_one_optimizer(factory):
    G, Ds = small_generator(), list(pair())
    return World(Ds, factory([*Ds[0].parameters(), *Ds[1].parameters()]), G, points(G), pair_d, pair_g)


@problem()
def two_discriminators_two_optimizers(factory):
    G, Ds = small_generator(), pair()
    return World(Ds, [factory(D.parameters()) for D in Ds], G, points(G), pair_d, pair_g)


@problem()
def dict_of_discriminators(factory):
    G, (a, b) = small_generator(), pair()
    return World({"a": a, "b": b}, factory([*a.parameters(), *b.parameters()]), G, points(G), pair_d, pair_g)


@problem()
def conditional(factory):
    """Integer labels by keyword, an embedding in D."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.body = nn.Embedding(3, 2), mlp_module()

        def forward(self, x, labels):
            return self.body(x * self.embed(labels))

    def d_loss(D, real, fake, *, labels):
        return softplus(-D(real, labels)).mean() + softplus(D(fake, labels)).mean()

    def g_loss(D, real, fake, *, labels):
        return softplus(-D(fake, labels)).mean()

    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    return plain(Net(), factory, d_loss=d_loss, g_loss=g_loss, kwargs={"labels": labels})
