"""Every problem: the call is K real steps then g_loss, and its gradient is that value's total derivative."""

import pytest
import reference
import torch
from checks import (
    assert_exact,
    assert_exact_in,
    call,
    expect,
    expected_of,
    gradient_of,
    oracle,
    unrolled_of,
    warm_world,
)
from problems import PROBLEMS


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", list(PROBLEMS))
def test_value_and_gradient_are_those_of_real_steps(name, steps):
    """Value to 1e-12, gradient to 1e-7, from a warm optimizer, however the call is written."""
    expected, world = expected_of(name, "adam", steps), warm_world(name)
    unrolled = unrolled_of(world, steps=steps)
    assert_exact_in(world.modes, world, unrolled, expected, gap=PROBLEMS[name].gap)


@pytest.mark.parametrize(("name", "optimizer"), [("mlp", "adam"), ("dropout", "sgd")])
def test_every_coordinate_of_the_gradient(name, optimizer):
    """The whole gradient of a tiny generator, coordinate by coordinate."""
    world = warm_world(name, optimizer)
    expected = expect(world, whole=True, steps=2)
    assert len(expected.slopes) == sum(x.numel() for x in world.inputs)
    assert_exact(call(world, unrolled_of(world, steps=2)), world, expected)


@pytest.mark.parametrize("name", list(PROBLEMS))
def test_no_steps_is_the_users_own_loss_bit_for_bit(name):
    """steps=0: the same value and the same gradient, exactly, and nothing of D moves."""
    world = warm_world(name)
    unrolled = unrolled_of(world, steps=0)
    value = oracle(reference.value, world, steps=0)
    gradient = oracle(reference.first_term, world, steps=0)
    buffers = [(b, b.clone()) for D in reference.discriminators(world.discriminator) for b in D.buffers()]
    for mode in world.modes:
        state = torch.get_rng_state()
        loss = call(world, unrolled, mode)
        assert loss.item() == value.item()
        grads = torch.autograd.grad(loss, world.inputs, allow_unused=True)
        assert all(torch.equal(a, b) for a, b in zip(grads, gradient, strict=True))
        assert all(torch.equal(b, was) for b, was in buffers)
        torch.set_rng_state(state)
    assert value.item() != oracle(reference.value, world, steps=1).item()


@pytest.mark.parametrize("name", ["mlp", "batchnorm_two_batches", "dropout", "spectral_norm_new"])
def test_ten_steps(name):
    """K=10, the ring's: value to 1e-12 and gradient to 1e-7."""
    expected, world = expected_of(name, "adam", 10), warm_world(name)
    assert_exact(call(world, unrolled_of(world, steps=10)), world, expected)


@pytest.mark.parametrize("name", ["mlp", "batchnorm_two_batches", "lstm", "weight_norm_legacy"])
def test_calls_leave_each_other_alone(name):
    """A second call, before and after the first one's backward, gives the same numbers bit for bit."""
    world = warm_world(name)
    unrolled = unrolled_of(world, steps=3)
    first, second = call(world, unrolled), call(world, unrolled)
    one, two = gradient_of(first, world), gradient_of(second, world)
    assert first.item() == second.item() == call(world, unrolled).item()
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_real_training_between_calls_is_seen():
    """Calls interleaved with real steps of D and G stay exact: nothing is cached."""
    world = warm_world()
    unrolled = unrolled_of(world, steps=3)
    values = []
    for _ in range(3):
        expected = expect(world, steps=3)
        loss = call(world, unrolled)
        assert_exact(loss, world, expected)
        values.append(loss.item())
        loss.backward()
        with torch.no_grad():
            for p in world.generator.parameters():
                p -= 0.1 * p.grad
        world.warm(2)
    assert len(set(values)) == 3
