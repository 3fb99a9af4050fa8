"""Random draws come from the global generator in the user's order."""

import copy

import pytest
import torch
from checks import call, warm_world
from reference import discriminators
from test_exact import unrolled_of


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


def test_the_same_seed_gives_the_same_call_and_another_seed_another():
    """Dropout inside an unroll follows torch.manual_seed."""
    world = warm_world("dropout")
    unrolled, values = unrolled_of(world, steps=3), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        values.append(call(world, unrolled).item())
    assert values[0] == values[1] != values[2]


def test_evaluation_mode_is_respected():
    """A D in eval mode draws nothing and moves no statistics."""
    world = warm_world("dropout")
    for D in discriminators(world.discriminator):
        D.eval()
    state = torch.get_rng_state()
    unrolled = unrolled_of(world, steps=3)
    assert call(world, unrolled).item() == call(world, unrolled).item()
    assert torch.equal(state, torch.get_rng_state())
