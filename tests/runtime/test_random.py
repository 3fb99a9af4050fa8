"""Random draws come from the global generator in the user's order."""

import copy
from contextlib import nullcontext

import pytest
import torch
from checks import call, gradient_of, unrolled_of, warm_world
from reference import discriminators

from unroll_wrap import Recompute, Store


@pytest.mark.parametrize("name", ["dropout", "wgan_gp", "mlp"])
@pytest.mark.parametrize("mode", ["argument", "closure"])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_the_stream_after_a_call_is_that_after_its_loss_evaluations(name, mode, steps):
    """K times d_loss and once g_loss, no draw more or less, neither in the call nor in backward."""
    world = warm_world(name)
    state = torch.get_rng_state()
    twin = copy.deepcopy(world.discriminator)
    for _ in range(steps):
        world.d_loss(twin, *world.batch())
    world.g_loss(twin, *world.batch())
    expected = torch.get_rng_state()
    assert torch.equal(state, expected) == (name == "mlp" or (name == "wgan_gp" and steps == 0))
    torch.set_rng_state(state)
    loss = call(world, unrolled_of(world, steps=steps), mode)
    assert torch.equal(torch.get_rng_state(), expected)
    loss.backward()
    assert torch.equal(torch.get_rng_state(), expected)


@pytest.mark.parametrize("backward", [Store(), Recompute()], ids=repr)
def test_a_fork_leaves_the_stream_alone(backward):
    """The same value and gradient as without it, and the loop's own draws go on as if there had been no call."""
    world, found = warm_world("dropout"), []
    state = torch.get_rng_state()
    for fork in (nullcontext, torch.random.fork_rng):
        torch.set_rng_state(state)
        unrolled = unrolled_of(world, steps=3, backward=backward)
        with fork():
            loss = call(world, unrolled)
        found.append((loss, torch.cat([g.flatten() for g in gradient_of(loss, world)])))
        assert torch.equal(torch.get_rng_state(), state) == (fork is not nullcontext)
    (one, gradient), (other, again) = found
    assert torch.equal(one, other) and torch.equal(gradient, again)


def test_the_same_seed_gives_the_same_call_and_another_seed_another():
    """Dropout inside an unroll follows torch.manual_seed."""
    world = warm_world("dropout")
    unrolled, values = unrolled_of(world, steps=3), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        values.append(call(world, unrolled).item())
    assert values[0] == values[1] != values[2]


@pytest.mark.filterwarnings("ignore::unroll_wrap.EvalMode")
def test_evaluation_mode_is_respected():
    """A D in eval mode draws nothing and moves no statistics."""
    world = warm_world("dropout")
    for D in discriminators(world.discriminator):
        D.eval()
    state = torch.get_rng_state()
    unrolled = unrolled_of(world, steps=3)
    assert call(world, unrolled).item() == call(world, unrolled).item()
    assert torch.equal(state, torch.get_rng_state())
