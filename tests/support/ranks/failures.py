"""What goes wrong on one rank, or differs between them: all raise, and none waits."""

import os
import time

import pytest
import torch
import torch.distributed as dist
from worlds import non_saturating_d, non_saturating_g

from unroll_wrap import (
    Recompute,
    Truncate,
    is_unrolling,
)

from .table import (
    STEPS,
    all_raise,
    assert_all_close,
    assert_same,
    averaged_call,
    build,
    case,
    everyone,
    joined,
    mine,
    penalised_d,
    world,
)


class Broken(RuntimeError):
    pass


class RaisesBackwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return RaisesTwice.apply(g)


class RaisesTwice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        raise Broken("in the second pass")


def _raise():
    raise Broken("on the way")


def breaking_at(number):
    """A d_loss that fails at its evaluation of this number."""
    count = iter(range(1000))

    def d_loss(D, real, fake):
        if next(count) == number:
            _raise()
        return non_saturating_d(D, real, fake)

    return d_loss


def failing_second_pass(D, real, fake):
    return non_saturating_d(lambda x: RaisesBackwards.apply(D(x)), real, fake)


failing_second_pass.__qualname__ = non_saturating_d.__qualname__


def named(function):
    """What is broken on one rank has the name that it has on the others."""
    function.__qualname__ = non_saturating_d.__qualname__
    return function


FAILURES = {
    "in the first inner step": (lambda: {"d_loss": named(breaking_at(0))},),
    "in a later inner step": (lambda: {"d_loss": named(breaking_at(2))},),
    "when a step is replayed": (lambda: {"d_loss": named(breaking_at(STEPS + 1))},),
    "in the last pass back": (lambda: {"d_loss": failing_second_pass},),
    "in a schedule": (lambda: {"steps": _raise},),
    "in drawing a batch": (lambda: {"resample": lambda k: _raise()},),
}


@case(**FAILURES)
def one_rank_raises(options, rank, size):
    one = world()
    steps = 1 if options is FAILURES["in the last pass back"][0] else STEPS
    unrolled = build(one, dist.group.WORLD, backward=Recompute(), steps=steps)
    batch = mine(one.batch(), rank, size)
    at_fault = rank == size - 1
    with all_raise(Broken, "way|pass", other=None if at_fault else (RuntimeError, f"rank {size - 1} raised Broken: ")):
        unrolled(*batch, **(options() if at_fault else {}))
    # And everything still works.
    assert_same(averaged_call(one, rank, size), joined())


@case()
def one_rank_overflows(rank, size):
    """Found after the last message, when the others are done."""
    one = world()

    def g_loss(D, real, fake):
        return non_saturating_g(D, real, fake) * (float("inf") if rank == 0 else 1.0)

    g_loss.__qualname__ = non_saturating_g.__qualname__
    one.g_loss = g_loss
    with all_raise(
        ValueError, "g_loss after the inner steps is inf", other=rank and (RuntimeError, "rank 0 raised Value")
    ):
        build(one, dist.group.WORLD, stop_gradient=True)(*mine(one.batch(), rank, size))


@case()
def every_rank_raises(rank, size):
    one = world()
    with all_raise(ValueError, "Truncate"):
        build(one, dist.group.WORLD, backward=Truncate(9))(*mine(one.batch(), rank, size))


DISAGREE = {
    "K": (lambda one, rank: {"steps": 2 + rank}, "steps: 2 on rank 0, 3 on rank 1"),
    "K none": (lambda one, rank: {"steps": rank}, "steps: 0 on rank 0, 1 on rank 1"),
    "objective": (
        lambda one, rank: {"d_loss": penalised_d if rank else non_saturating_d},
        "d_loss: non_saturating_d on rank 0, penalised_d on rank 1",
    ),
    "optimizer": (
        lambda one, rank: one.optimizer.param_groups[0].update(lr=0.1 + rank) or {},
        r"same\. Adam's lr \(group 0\): 0.1 on rank 0, 1.1 on rank 1",
    ),
    "parameters": (
        lambda one, rank: one.discriminator[0].bias.data.add_(0.01 * rank) is None or {},
        "different parameters of the player that moves, which sum to .* on rank 0, .* on rank 1",
    ),
}


@case(**DISAGREE)
def ranks_disagree_on(change, match, rank, size):
    one = world()
    options = change(one, rank) or {}
    unrolled = build(one, dist.group.WORLD)
    with all_raise(ValueError, match):
        unrolled(*mine(one.batch(), rank, size), **(options if isinstance(options, dict) else {}))


@case()
def ranks_disagree_on_the_batch(rank, size):
    one = world()
    batch = one.batch()
    own = tuple(x[: 2 + rank] for x in batch)
    with all_raise(ValueError, r"the batch: \(2, 2\) float64, .* on rank 0, \(3, 2\) float64"):
        build(one, dist.group.WORLD)(*own)
    with all_raise(ValueError, "the batch"):
        build(one, dist.group.WORLD)(*(own if rank else own[1:]))


@case()
def ranks_disagree_on_a_later_batch(rank, size):
    one = world()

    def resample(k):
        return tuple(x[: 2 + (k == 2 and rank == 1)] for x in one.draw(k))

    with pytest.raises((ValueError, RuntimeError), match=r"the batch of an inner step is \(\d, 2\) float64"):
        build(one, dist.group.WORLD, resample=resample)(*mine(one.batch(), rank, size))
    assert everyone(rank) == list(range(size))


@case()
def groups(rank, size):
    one = world()
    pair = dist.new_group([0, 1])
    if rank < 2:
        found = build(one, pair)(*mine(one.batch(), rank, 2))
        grads = [g.clone() for g in torch.autograd.grad(found, one.inputs)]
        for g in grads:
            dist.all_reduce(g, group=pair)
        assert_all_close([g / 2 for g in grads], joined()[1])
        unrolled = build(one, pair)
        dist.destroy_process_group(pair)
        with pytest.raises(RuntimeError, match="average_gradients was given is gone"):
            unrolled(*mine(one.batch(), rank, 2))
    else:
        with pytest.raises(TypeError, match="Pass a process group"):
            build(one, pair)
    with pytest.raises(TypeError, match="average_gradients is 'all'. Pass a process group"):
        build(one, "all")
    with pytest.raises(TypeError, match="average_gradients is True"):
        build(one, True)
    with pytest.raises(ValueError, match="None, as torch.distributed.group.WORLD is before init_process_group"):
        build(one, None)


def the_last_rank_ends(rank, size):
    """The others are told by the group itself, well before its timeout."""
    one = world()

    @named
    def d_loss(D, real, fake):
        if rank == size - 1 and is_unrolling():
            os._exit(0)
        return non_saturating_d(D, real, fake)

    unrolled = build(one, dist.group.WORLD)
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="process group failed in the middle of an unroll"):
        unrolled(*mine(one.batch(), rank, size), d_loss=d_loss)
    assert time.monotonic() - began < 20
