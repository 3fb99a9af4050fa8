"""The table of cases for a process group, and what every case is made of: the joined world, a rank's share, measures.

Batches are the rows of one joined batch, dealt out in order. What a single process makes of the joined batch is
asked of `reference.chained`, which shares nothing with the package.
"""

import copy
import time
from contextlib import contextmanager
from functools import lru_cache, partial

import pytest
import reference
import torch
import torch.distributed as dist
from optimizers import OPTIMIZERS
from torch import nn
from worlds import World, double, mlp_module, non_saturating_d, non_saturating_g, points, small_generator

from unroll_wrap import (
    UnrolledGeneratorLoss,
)

ROWS, STEPS, EXACT, GAP = 8, 4, 1e-10, 1e-3
CASES = {}


def case(sizes=(2, 4), **options):
    """Enter a function in the table, once for each of `options`."""

    def enter(function):
        name = function.__name__.replace("_", " ")
        ways = options or {"": ()}
        for key, arguments in ways.items():
            CASES[f"{name} {key}".strip()] = (sizes, partial(function, *arguments))
        return function

    return enter


def penalised_d(D, real, fake):
    """A Wasserstein loss with a gradient penalty halfway, which differentiates twice already in the inner loss."""
    half = ((real + fake) / 2).detach().requires_grad_()
    (slope,) = torch.autograd.grad(D(half).sum(), half, create_graph=True)
    return (D(fake) - D(real)).mean() + (slope.norm(dim=1) - 1).square().mean()


class TwoHeads(nn.Module):
    """Two ways to a logit."""

    def __init__(self):
        super().__init__()
        self.body, self.one, self.other = nn.Linear(2, 5), nn.Linear(5, 1), nn.Linear(5, 1)

    def forward(self, x):
        h = torch.tanh(self.body(x))
        return self.one(h) + 0.5 * self.other(h)


@lru_cache
def warm(optimizer, module, d_loss):
    torch.manual_seed(0)
    G, D = small_generator(), double(module())
    own = OPTIMIZERS[optimizer](D.parameters())
    World(D, own, G, points(G, rows=ROWS), d_loss, non_saturating_g).warm()
    return G, D, own


def world(optimizer="adam", module=mlp_module, d_loss=non_saturating_d):
    """The joined world after its warm-up, the same on every rank."""
    G, D, own = copy.deepcopy(warm(optimizer, module, d_loss))
    return World(D, own, G, points(G, rows=ROWS), d_loss, non_saturating_g)


def mine(batch, rank, size):
    """This rank's rows."""
    return tuple(x[rank * ROWS // size : (rank + 1) * ROWS // size] for x in batch)


def build(one, group, **options):
    options.setdefault("steps", STEPS)
    return UnrolledGeneratorLoss(
        one.discriminator, one.optimizer, one.d_loss, one.g_loss, average_gradients=group, **options
    )


def averaged(tensors, size):
    """Over the ranks, as G's DDP does it."""
    result = []
    for t in tensors:
        t = t.detach().clone()
        dist.all_reduce(t)
        result.append(t / size)
    return result


def gradient(loss, one, size):
    """This rank's loss to the value and the generator's gradient of all."""
    found = averaged([loss, *torch.autograd.grad(loss, one.inputs)], size)
    return found[0], found[1:]


@lru_cache
def joined(optimizer="adam", module=mlp_module, d_loss=non_saturating_d):
    """One process, the joined batch, one long graph."""
    one = world(optimizer, module, d_loss)
    loss = reference.chained(one.discriminator, one.optimizer, one.d_loss, one.g_loss, one.batch(), STEPS)
    return loss.detach(), reference.filled(loss, one.inputs)


def assert_same(found, expected, tolerance=EXACT):
    value, grads = found
    assert abs(value - expected[0]) <= tolerance, f"value {value.item()!r} for {expected[0].item()!r}"
    error = reference.gap(grads, expected[1])
    assert error <= tolerance, f"gradient off by {error:.1e}"


def assert_apart(found, expected):
    """A control: another gradient, told apart by the measure of `assert_same`."""
    assert reference.gap(found[1], expected[1]) > GAP


def averaged_call(one, rank, size, **options):
    return gradient(build(one, dist.group.WORLD, **options)(*mine(one.batch(), rank, size)), one, size)


def single(one, batches=None, **options):
    """One process on the joined batch, by the package, for what the long graph does not know."""
    loss = build(one, False, resample=batches, **options)(*one.batch())
    return loss.detach(), list(torch.autograd.grad(loss, one.inputs))


def assert_all_close(found, expected):
    assert reference.gap(found, expected) <= EXACT


def everyone(thing):
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, thing)
    return found


@contextmanager
def all_raise(kind, match, other=None):
    """Every rank raises, none waits, and after that the group is in step again; `other` is for those not at fault."""
    began = time.monotonic()
    with pytest.raises(other[0] if other else kind, match=other[1] if other else match):
        yield
    assert time.monotonic() - began < 20
    number = dist.get_rank() + 1.0
    total = torch.tensor(number, dtype=torch.float64)
    dist.all_reduce(total)
    assert total == sum(range(dist.get_world_size() + 1))
