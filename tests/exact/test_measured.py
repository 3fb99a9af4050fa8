"""What was once measured to go wrong, each as a test."""

import functools

import pytest
import reference
import torch
from checks import assert_exact, call, distance, expect, expected_of, gradient_of, oracle, unrolled_of, warm_world

from unroll_wrap import UnrolledGeneratorLoss


def test_from_fresh_adam_one_step_shows_nothing():
    """K=1 from fresh state: the first term alone passes any gradient test. From warm state it does not."""
    world = warm_world()
    spec = functools.partial(torch.optim.Adam, lr=0.02)
    first = oracle(reference.first_term, world, steps=1, optimizer=spec)
    unrolled = UnrolledGeneratorLoss(world.discriminator, spec, world.d_loss, world.g_loss, steps=1)
    fresh = gradient_of(call(world, unrolled), world)
    assert 0 < reference.gap(first, fresh) < 1e-4
    warm = gradient_of(call(world, unrolled_of(world, steps=1)), world)
    assert reference.gap(oracle(reference.first_term, world, steps=1), warm) > 5e-2


@pytest.mark.parametrize("optimizer", ["adam", "adam_amsgrad", "adamw", "adam_all", "adam_defaults_but_lr"])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_dead_relu_stays_finite_and_exact(optimizer, steps):
    """v == 0 exactly: the naive square root gives NaN (see test_oracle.py); here finite and right."""
    expected, world = expected_of("dead_relu", optimizer, steps), warm_world("dead_relu", optimizer)
    # Slow averages (0.9, 0.999) answer one step least: 7e-3.
    assert_exact(call(world, unrolled_of(world, steps=steps)), world, expected, gap=5e-3)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_dead_relu_without_state_stays_finite(steps):
    """Fresh state, where every v is 0 before the first step, and the dead ones after it too."""
    world = warm_world("dead_relu")
    spec = functools.partial(torch.optim.Adam, lr=0.02, eps=1e-2)
    expected = expect(world, steps=steps, optimizer=spec)
    unrolled = UnrolledGeneratorLoss(world.discriminator, spec, world.d_loss, world.g_loss, steps=steps)
    assert_exact(call(world, unrolled), world, expected, gap=1e-3)


def test_a_bias_before_batchnorm_stays_finite():
    """Its gradient is zero up to rounding, so its v is nearly zero."""
    world = warm_world("batchnorm_two_batches")
    bias = world.discriminator[0].bias
    assert world.optimizer.state[bias]["exp_avg_sq"].max() < 1e-25
    gradient = gradient_of(call(world, unrolled_of(world, steps=3)), world)
    assert all(torch.isfinite(g).all() for g in gradient)


def test_batchnorm_statistics_do_not_move_and_are_carried():
    """The user's statistics stay; inside, each step sees those that the steps before it left."""
    world = warm_world("batchnorm_read_in_eval")
    norm, seen = world.discriminator.norm, []
    before = norm.running_mean, norm.running_mean.clone(), norm.num_batches_tracked.clone()
    g_loss = world.g_loss

    def reading(D, real, fake):
        seen.append((D.norm.running_mean.clone(), D.norm.num_batches_tracked.item()))
        return g_loss(D, real, fake)

    call(world, unrolled_of(world, steps=3), g_loss=reading)
    twins = reference.copies(world.discriminator, world.optimizer)
    for _ in range(3):
        reference.real_step(twins, world.d_loss, world.batch(), {})
    assert torch.allclose(seen[0][0], twins.discriminator.norm.running_mean, rtol=1e-12, atol=0)
    assert seen[0][1] == before[2].item() + 6
    assert norm.running_mean is before[0] and torch.equal(norm.running_mean, before[1])
    assert not torch.allclose(seen[0][0], before[1])


def test_dropout_draws_other_masks_per_step_and_is_differentiated_with_them():
    """Exact with each step's own mask; with one mask for all steps it is another number."""
    expected, world = expected_of("dropout", "adam", 3), warm_world("dropout")
    state, d_loss = torch.get_rng_state(), world.d_loss
    loss = call(world, unrolled_of(world, steps=3))
    assert_exact(loss, world, expected)

    def one_mask(D, real, fake):
        torch.set_rng_state(state)
        return d_loss(D, real, fake)

    torch.set_rng_state(state)
    same = call(world, unrolled_of(world, steps=3), d_loss=one_mask)
    assert abs(same - loss) > 1e-3
    assert distance(gradient_of(same, world), expected) > 1e-2


def test_plain_sgd_at_adams_rate_is_no_unrolling():
    """The second term of a wrong optimizer is not the right one: state and rule both matter."""
    world = warm_world()
    right = expected_of("mlp", "adam", 3)
    for optimizer in (functools.partial(torch.optim.SGD, lr=0.02), functools.partial(torch.optim.Adam, lr=0.02)):
        wrong = UnrolledGeneratorLoss(world.discriminator, optimizer, world.d_loss, world.g_loss, steps=3)
        assert distance(gradient_of(call(world, wrong), world), right) > 1e-2
