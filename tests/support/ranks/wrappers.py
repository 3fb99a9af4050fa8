"""Ranks whose nets are wrapped in DistributedDataParallel: training, accumulation, hooks, buffers."""

import sys
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
import reference
import torch
import torch.distributed as dist
from optimizers import OPTIMIZERS
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP
from worlds import World, double, points, small_generator

from unroll_wrap import (
    Recompute,
    Store,
    diagnose,
    predict,
    verify,
)

from .loop import train, trained, wrapped
from .table import (
    ROWS,
    assert_all_close,
    assert_apart,
    assert_same,
    averaged,
    averaged_call,
    build,
    case,
    everyone,
    gradient,
    joined,
    mine,
    single,
    world,
)

DDP_OPTIONS = {
    "plain": ({},),
    "unused": ({"find_unused_parameters": True},),
    "static graph": ({"static_graph": True},),
    "no broadcast": ({"broadcast_buffers": False},),
    "bucket view": ({"gradient_as_bucket_view": True},),
}


@case(**DDP_OPTIONS)
def training_in_ddp(options, rank, size):
    """N ranks are one process on the joined batch, also after several updates of both nets."""
    one = wrapped(partial(DDP, **options), partial(DDP, **options))
    unrolled = build(one, dist.group.WORLD)
    assert_all_close(train(one, unrolled, partial(mine, rank=rank, size=size)), trained())


@case()
def accumulation_under_no_sync(rank, size):
    one = wrapped(DDP)
    found = train(one, build(one, dist.group.WORLD), partial(mine, rank=rank, size=size), accumulate=3)
    assert_all_close(found, trained(3))
    assert reference.gap(found, trained()) > 1e-6


@case()
def looking_ahead_alone(rank, size):
    """The default: every rank's own unroll, averaged by G's DDP and not before; D's reducer has no part in it."""
    one = wrapped(DDP)
    unrolled = build(one, False)
    with (
        mock.patch.object(dist, "all_reduce", side_effect=AssertionError),
        mock.patch.object(dist, "all_gather", side_effect=AssertionError),
    ):
        unrolled(*mine(one.batch(), rank, size)).backward()
    found = [p.grad for p in one.generator.parameters()]
    plain = world()
    own = build(plain, False)(*mine(plain.batch(), rank, size))
    _, expected = gradient(own, plain, size)
    assert_all_close(found, expected)
    assert_apart((None, found), joined())


@case()
def ranks_that_differ_without_averaging(rank, size):
    """In K, in find_unused_parameters of D, in the loss: each looks ahead as it likes, and nobody waits."""
    one = wrapped(DDP)
    one.discriminator = DDP(one.discriminator.module, find_unused_parameters=rank == 0)
    loss = build(one, False, steps=rank, backward=Recompute() if rank else Store())(*mine(one.batch(), rank, size))
    loss.backward()
    assert len({str(p) for p in everyone([p.grad.sum().item() for p in one.generator.parameters()])}) == 1


@case()
def no_hook_of_ds_reducer_fires(rank, size):
    """Averaged or not; the control is a real step, after which it does."""
    one = wrapped(DDP)
    calls = []

    def hook(state, bucket):
        calls.append(bucket.index())
        return dist.all_reduce(bucket.buffer() / size, async_op=True).get_future().then(lambda f: f.value()[0])

    one.discriminator.register_comm_hook(None, hook)
    for group in (False, dist.group.WORLD):
        build(one, group)(*mine(one.batch(), rank, size)).backward()
    assert not calls
    one.discriminator(torch.zeros(2, 2, dtype=torch.float64)).sum().backward()
    assert calls


@case()
def generator_called_inside_the_loss(rank, size):
    one = wrapped(DDP)

    def bind(loss):
        return lambda D: loss(D, *mine(one.batch(), rank, size))

    build(one, dist.group.WORLD)(d_loss=bind(one.d_loss), g_loss=bind(one.g_loss)).backward()
    assert_all_close([p.grad for p in one.generator.parameters()], joined()[1])


@case()
def buffers_that_ddp_broadcasts(rank, size):
    """A spectral norm's vectors: broadcast before real passes, each rank's own within the unroll, where they agree."""

    torch.manual_seed(0)
    G = small_generator()
    D = double(nn.Sequential(nn.utils.spectral_norm(nn.Linear(2, 5)), nn.Tanh(), nn.Linear(5, 1)))
    one = World(D, OPTIMIZERS["adam"](D.parameters()), G, points(G, rows=ROWS)).warm()
    expected = single(one)
    one.discriminator = DDP(one.discriminator)
    assert_same(averaged_call(one, rank, size), expected)


@case()
def the_loop_of_the_page(rank, size):
    """docs/distributed.md, on a group that is there already; G and D stay the same on all ranks."""
    page = (Path(__file__).parents[3] / "docs" / "distributed.md").read_text(encoding="utf-8")
    code = page.split("```py\n")[1].split("```")[0]
    names = {}
    with mock.patch.object(dist, "init_process_group"), mock.patch.object(dist, "destroy_process_group"):
        exec(compile(code, "distributed.md", "exec"), names)
    params = [p.detach().double() for net in (names["G"], names["D"]) for p in net.parameters()]
    assert_all_close(averaged(params, size), params)
    assert len(set(everyone(names["real"].sum().item()))) == size


@case()
def verify_is_for_one_process(rank, size):
    one = world()
    with pytest.raises(ValueError, match="real steps of one process"):
        verify(build(one, dist.group.WORLD), *one.batch())


@case()
def diagnose_and_predict(rank, size):
    """Several calls each, made by all."""
    one = world()
    batch = mine(one.batch(), rank, size)
    assert diagnose(build(one, dist.group.WORLD), *batch).second_term > 0
    # The clocks of the ranks differ, as if counting memory had taken long on one of them only.
    with mock.patch.object(sys.modules["unroll_wrap.diagnostics.predict"], "_SHARE", float("inf") if rank else 0.0):
        assert predict(build(one, dist.group.WORLD), *batch, steps=9).steps == 9
