"""The table of problems: discriminators, generators, batches and losses that an unroll has to get right.

A builder takes an optimizer factory (`optimizers.py`) and returns a World. Everything is float64 and tiny. One row is
one function with `@problem(gap)`, where `gap` is the least relative distance that the exact gradient must keep from the
one without the second term (the control that must fail): 1e-2, unless the row says why it is smaller. A row with
`chain=True` holds something that torch or the net itself computes under no_grad from D or from the fake (a power
iteration, running statistics); promise 3 of the design honours that cut, differences see through it, so its gradient
is compared with one long graph (`reference.chained`), its value with the real steps as everywhere.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

softplus = F.softplus
WARM_STEPS = 20
DRAWS = WARM_STEPS + 16


def non_saturating_d(D, real, fake):
    """BCE with logits, real to 1 and fake to 0."""
    return softplus(-D(real)).mean() + softplus(D(fake)).mean()


def non_saturating_g(D, real, fake):
    """BCE with logits, fake to 1."""
    return softplus(-D(fake)).mean()


@dataclass
class World:
    """One user's objects. `draw(i)` is the i-th batch with its graph into the generator; the last is for the call."""

    discriminator: Any
    optimizer: Any
    generator: nn.Module
    draw: Callable[[int], tuple]
    d_loss: Callable = non_saturating_d
    g_loss: Callable = non_saturating_g
    kwargs: dict = field(default_factory=dict)
    inputs: list = field(default_factory=list)  # what gradients are taken for; the generator's parameters if empty
    resample: bool = False  # inner steps get draw(0), draw(1), ...
    before_call: Callable[[], None] = lambda: None
    frozen: list = field(default_factory=list)  # owned by the optimizer, never trained

    def __post_init__(self):
        self.inputs = self.inputs or list(self.generator.parameters())

    def batch(self):
        """The call's own batch, made afresh so that it follows a shifted generator."""
        return self.draw(DRAWS - 1)

    def batches(self, steps):
        """The inner steps' batches, or None for the fixed minibatch."""
        return [self.draw(k) for k in range(steps)] if self.resample else None

    def optimizers(self):
        return self.optimizer if isinstance(self.optimizer, list) else [self.optimizer]

    def warm(self, steps=WARM_STEPS):
        """Real discriminator steps, as the user's loop takes them. They leave .grad behind, as there."""
        for i in range(steps):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            batch = [x.detach() if isinstance(x, torch.Tensor) else x for x in self.draw(i)]
            self.d_loss(self.discriminator, *batch, **self.kwargs).backward()
            for optimizer in self.optimizers():
                optimizer.step()
        self.generator.zero_grad()
        return self


class Problem(NamedTuple):
    """A row of the table."""

    build: Callable
    gap: float
    chain: bool


PROBLEMS: dict[str, Problem] = {}


def problem(gap=1e-2, chain=False):
    """Enter a builder in the table."""

    def enter(build):
        PROBLEMS[build.__name__] = Problem(build, gap, chain)
        return build

    return enter


def double(module):
    return module.to(torch.float64)


def points(G, *, rows=6, real=None, z=2, seed=0):
    """Batches (real, fake) of points; `real(noise)` shapes the real ones. Nothing here draws from the global stream."""
    generator = torch.Generator().manual_seed(seed)
    noises = torch.randn(DRAWS, rows, z, generator=generator, dtype=torch.float64)
    reals = torch.randn(DRAWS, rows, 2, generator=generator, dtype=torch.float64) * 0.5 + 1.0
    return lambda i: (reals[i].clone() if real is None else real(reals[i]), G(noises[i]))


def small_generator():
    """17 parameters, smooth."""
    return double(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)))


def plain(D, factory, **changes):
    """A World over points with one module and one optimizer over all of it."""
    G = small_generator()
    D = double(D)
    return World(D, factory(D.parameters()), G, points(G), **changes)


def mlp_module():
    return nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1))


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


def images(G, rows=4):
    generator = torch.Generator().manual_seed(0)
    noises = torch.randn(DRAWS, rows, 2, generator=generator, dtype=torch.float64)
    reals = torch.randn(DRAWS, rows, 1, 4, 4, generator=generator, dtype=torch.float64) + 0.5
    return lambda i: (reals[i].clone(), G(noises[i]).view(rows, 1, 4, 4))


def conv_module():
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Softplus(), nn.Flatten(), nn.Linear(32, 1)
    )


def convolutional(factory, **changes):
    G, D = double(nn.Sequential(nn.Linear(2, 16), nn.Tanh())), double(conv_module())
    return World(D, factory(D.parameters()), G, images(G), **changes)


@problem()
def batchnorm_two_batches(factory):
    """D(real) and D(fake) normalised apart; running statistics move twice a step."""
    return convolutional(factory)


@problem()
def batchnorm_one_batch(factory):
    """D(cat(real, fake)): the generator moves the statistics of the real half."""

    def split(D, real, fake):
        return D(torch.cat([real, fake])).chunk(2)

    def d_loss(D, real, fake):
        on_real, on_fake = split(D, real, fake)
        return softplus(-on_real).mean() + softplus(on_fake).mean()

    def g_loss(D, real, fake):
        return softplus(-split(D, real, fake)[1]).mean()

    return convolutional(factory, d_loss=d_loss, g_loss=g_loss)


@problem(chain=True)
def batchnorm_read_in_eval(factory):
    """g_loss reads the running statistics, so they have to be carried through the steps."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Linear(32, 1)

        def forward(self, x, reading=False):
            norm, h = self.norm, self.conv(x)
            if reading:
                h = F.batch_norm(h, norm.running_mean, norm.running_var, norm.weight, norm.bias)
            else:
                h = norm(h)
            return self.head(softplus(h).flatten(1))

    G, D = double(nn.Sequential(nn.Linear(2, 16), nn.Tanh())), double(Net())
    return World(D, factory(D.parameters()), G, images(G), g_loss=lambda D, real, fake: softplus(-D(fake, True)).mean())


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
def lstm(factory):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.LSTM(1, 3, batch_first=True), nn.Linear(3, 1)

        def forward(self, x):
            return self.head(self.rnn(x.unsqueeze(-1))[0][:, -1])

    return plain(Net(), factory)


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


def normed(old, new):
    """The same net under a legacy hook or a parametrization, each made where its deprecation is expected."""

    def module(legacy):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            norm = old if legacy else new
            return nn.Sequential(norm(nn.Linear(2, 5)), nn.Tanh(), norm(nn.Linear(5, 1)))

    return module


spectral_module = normed(nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm)
weight_module = normed(nn.utils.weight_norm, nn.utils.parametrizations.weight_norm)


@problem(chain=True)
def spectral_norm_legacy(factory):
    return plain(spectral_module(True), factory)


@problem(chain=True)
def spectral_norm_new(factory):
    return plain(spectral_module(False), factory)


@problem()
def weight_norm_legacy(factory):
    return plain(weight_module(True), factory)


@problem()
def weight_norm_new(factory):
    return plain(weight_module(False), factory)


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


@problem(chain=True)
def plain_buffer(factory):
    """A buffer that forward writes in place and reads back: carried through the steps, then thrown away."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp_module()
            self.register_buffer("mean", torch.zeros(2))
            self.register_buffer("calls", torch.zeros((), dtype=torch.long))

        def forward(self, x):
            with torch.no_grad():
                self.mean.mul_(0.7).add_(0.3 * x.mean(0))
                self.calls += 1
            return self.body(x - self.mean) / (1 + 0.01 * self.calls)

    return plain(Net(), factory)
