"""Wrappers that run D elsewhere or on several devices: a process group of one process, and Gloo."""

import pytest
import torch
import torch.distributed as dist
from checks import MODES, assert_exact_in, call, expected_of, unrolled_of, warm_world
from snapshot import changed, snapshot
from torch.nn.parallel import DistributedDataParallel

STEPS = 3
OPTIONS = [{}, {"find_unused_parameters": True}, {"static_graph": True}]


@pytest.fixture
def group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def wrapped(name, **options):
    """A warm world whose D is wrapped; the optimizer owns the same parameters."""
    world = warm_world(name)
    world.discriminator = DistributedDataParallel(world.discriminator, **options)
    return world


def real_step(world):
    """The user's own step of D, with its reduction; one pass, since two do not suit every option."""
    world.optimizer.zero_grad()
    real, fake = world.batch()
    out = world.discriminator(torch.cat([real, fake.detach()]))
    (-out.chunk(2)[0] + out.chunk(2)[1]).mean().backward()
    world.optimizer.step()
    world.generator.zero_grad()
    return out


@pytest.mark.parametrize("name", ["mlp", "batchnorm_two_batches"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_distributed_data_parallel(group, options, name):
    """Exact, wrapped or through .module; nothing of the wrapper's changes, and real steps go on as without a call."""
    expected, world = expected_of(name, "adam", STEPS), wrapped(name, **options)
    before = snapshot(world)
    assert_exact_in(MODES, world, unrolled_of(world, steps=STEPS), expected)
    assert_exact_in(
        MODES[:1],
        world,
        unrolled_of(world, steps=STEPS),
        expected,
        d_loss=lambda D, *batch: world.d_loss(D.module, *batch),
    )
    assert changed(before, snapshot(world)) == []


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("steps", [0, STEPS])
def test_real_steps_between_calls(group, options, steps):
    """The reducer waits for nothing that an unroll left open: steps, call, steps, as without the call."""
    outcomes = []
    for called in (False, True):
        world = wrapped("batchnorm_two_batches", **options)
        unrolled = unrolled_of(world, steps=steps)
        for _ in range(3):
            out = real_step(world)
            if called:
                call(world, unrolled).backward()
                world.generator.zero_grad()
        outcomes.append(out.detach())
    assert torch.equal(*outcomes)


def test_the_wrappers_own_forward_is_put_back(group):
    """Also one that the user has put there."""
    world = wrapped("mlp")
    D = world.discriminator
    call(world, unrolled_of(world, steps=STEPS))
    assert "forward" not in vars(D)
    D.forward = mine = lambda x: D.module(x)
    call(world, unrolled_of(world, steps=STEPS))
    assert vars(D)["forward"] is mine
