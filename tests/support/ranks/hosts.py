"""The loops of others on several ranks: the examples' own, Accelerate's and Fabric's; and nets in shards."""

import importlib
from functools import lru_cache, partial
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel as DDP
from worlds import points

from unroll_wrap import (
    UnrolledGeneratorLoss,
)

from .loop import train, trained
from .table import ROWS, STEPS, all_raise, assert_all_close, assert_same, averaged, build, case, joined, mine, world

# The scripts whose loops may be started by torchrun.
SCRIPTS = ("rnn_mnist", "stacked_mnist", "colored_mnist", "cifar10")


@lru_cache
def trained_like(script, launched):
    """The loop of a script on nets without BatchNorm, with the minibatch that `train_on_images` deals out."""
    from common import distributed
    from common.training import Players

    with mock.patch.object(distributed, "launched", lambda: launched):
        one = world()
        opt_G = torch.optim.Adam(one.generator.parameters(), lr=0.01)
        players = Players(one.generator, one.discriminator, opt_G, one.optimizer)
        loop = importlib.import_module(script)
        config = loop.Config(unroll=STEPS, updates=3, one_batch=False)
        torch.manual_seed(1)

        def minibatch():
            real, z = torch.randn(2, ROWS, 2, dtype=torch.float64)
            return distributed.share(real), distributed.share(z)

        losses = [loss_G for _, _, loss_G in loop.train(config, players, minibatch, 0)]
    return losses[-1], [p.detach() for net in players[:2] for p in net.parameters()]


@case(**{script: (script,) for script in SCRIPTS})
def the_loop_of(script, rank, size):
    """N processes train what one does."""
    found, expected = trained_like.__wrapped__(script, True), trained_like(script, False)
    assert_same((averaged([found[0]], size)[0], found[1]), expected)


@case(sizes=(2,))
def accelerate(rank, size):
    """Everything prepared, as Accelerate's users have it."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == size
    one = world()
    opt_G = torch.optim.Adam(one.generator.parameters(), lr=0.01)
    one.discriminator, one.generator, one.optimizer, opt_G = accelerator.prepare(
        one.discriminator, one.generator, one.optimizer, opt_G
    )
    assert isinstance(one.discriminator, DDP)
    one.draw = points(one.generator, rows=ROWS)
    deal = partial(mine, rank=rank, size=size)
    found = train(one, build(one, dist.group.WORLD), deal, backward=accelerator.backward, opt_G=opt_G)
    assert_all_close(found, trained())


@case(sizes=(2,))
def fabric(rank, size):
    """Everything set up, as Fabric's users have it."""
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=size, strategy="ddp")
    fabric.launch()
    assert fabric.world_size == size
    one = world()
    opt_G = torch.optim.Adam(one.generator.parameters(), lr=0.01)
    one.discriminator, one.optimizer = fabric.setup(one.discriminator, one.optimizer)
    one.generator, opt_G = fabric.setup(one.generator, opt_G)
    one.draw = points(one.generator, rows=ROWS)
    deal = partial(mine, rank=rank, size=size)
    found = train(one, build(one, dist.group.WORLD), deal, backward=fabric.backward, opt_G=opt_G)
    assert_all_close(found, trained())


# On a CPU torch 2.6 cannot shard.
SHARDS = hasattr(torch.cpu.Stream, "record_event")


@case(sizes=(2, 4) if SHARDS else (), argument=(False,), rerun=(True,))
def a_sharded_generator(rerun, rank, size):
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    one = world()
    G = one.generator
    for layer in (G[0], G[2], G):
        fully_shard(layer, mesh=init_device_mesh("cpu", (size,)))
    assert all(isinstance(p, DTensor) for p in G.parameters())
    unrolled = build(one, dist.group.WORLD)
    if rerun:
        with all_raise(ValueError, "given back its parameters' memory.*fake as an argument"):
            unrolled(
                d_loss=lambda D: one.d_loss(D, *mine(one.batch(), rank, size)),
                g_loss=lambda D: one.g_loss(D, *mine(one.batch(), rank, size)),
            )
    else:
        unrolled(*mine(one.batch(), rank, size)).backward()
        assert_all_close([p.grad.full_tensor() for p in G.parameters()], joined()[1])


@case()
def a_sharded_discriminator_is_refused(rank, size):
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.distributed.optim import ZeroRedundancyOptimizer
    from torch.distributed.tensor import distribute_module

    mesh = init_device_mesh("cpu", (size,))

    def refused(wrap, match):
        one = world()
        D = wrap(one.discriminator)
        with pytest.raises(TypeError, match=match):
            UnrolledGeneratorLoss(D, torch.optim.Adam(D.parameters()), one.d_loss, one.g_loss)

    refused(lambda D: fully_shard(D, mesh=mesh), "FSDPModule, which cannot be unrolled: each process holds a piece")
    refused(lambda D: distribute_module(D, mesh), "DTensors")
    refused(lambda D: FullyShardedDataParallel(D, device_id=torch.device("cpu")), "FullyShardedDataParallel, which")
    unknown = type("Odd", (nn.Sequential,), {"__module__": "torch.distributed.odd"})
    refused(unknown, "torch.distributed.odd.Odd, of which it is not known")
    refused(lambda D: nn.Sequential(D, nn.SyncBatchNorm(1)), "SyncBatchNorm, whose backward pass cannot")
    one = world()
    shards = ZeroRedundancyOptimizer(one.discriminator.parameters(), torch.optim.Adam, lr=0.1)
    with pytest.raises(TypeError, match="ZeroRedundancyOptimizer cannot be unrolled: each process holds"):
        UnrolledGeneratorLoss(one.discriminator, shards)
