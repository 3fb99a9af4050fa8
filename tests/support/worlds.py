"""What a problem is: one user's discriminator, optimizer, generator, batches and losses. The rows are in `problems.py`.

A builder takes an optimizer factory (`optimizers.py`) and returns a World. Everything is float64 and tiny. One row is
one function with `@problem(gap)`, where `gap` is the least relative distance that the exact gradient must keep from the
one without the second term (the control that must fail): 1e-2, unless the row says why it is smaller. A row with
`chain=True` holds something that torch or the net itself computes under no_grad from D or from the fake (a power
iteration, running statistics); the unroll honours that cut, differences see through it, so its gradient
is compared with one long graph (`reference.chained`), its value with the real steps as everywhere.
"""

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
    modes: tuple = ("argument", "closure", "rerun")  # the ways to write the call that mean the same

    def __post_init__(self):
        self.inputs = self.inputs or list(self.generator.parameters())
        if self.resample:
            self.modes = ("argument",)  # resampled batches reach the losses as arguments only

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


def images(G, rows=4):
    generator = torch.Generator().manual_seed(0)
    noises = torch.randn(DRAWS, rows, 2, generator=generator, dtype=torch.float64)
    reals = torch.randn(DRAWS, rows, 1, 4, 4, generator=generator, dtype=torch.float64) + 0.5
    return lambda i: (reals[i].clone(), G(noises[i]).view(rows, 1, 4, 4))
