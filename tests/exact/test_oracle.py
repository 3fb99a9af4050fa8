"""The oracle itself: two roads to the gradient agree, and each way of being wrong shows."""

import copy

import pytest
import reference
import torch
from checks import expect, expected_of, oracle, warm_world
from problems import PROBLEMS, softplus


def test_value_is_a_loop_written_by_hand():
    """K real steps of the live objects themselves give the oracle's value, bit for bit."""
    world = warm_world("batchnorm_two_batches")
    expected = oracle(reference.value, world, steps=3)
    world.warm(0)
    for _ in range(3):
        world.optimizer.zero_grad()
        real, fake = world.batch()
        world.d_loss(world.discriminator, real, fake.detach()).backward()
        world.optimizer.step()
    real, fake = world.batch()
    assert world.g_loss(world.discriminator, real, fake).item() == expected.item()
    assert oracle(reference.value, world, steps=0).item() != oracle(reference.value, world, steps=3).item()


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("mlp", "sgd"),
        ("mlp", "adam"),
        ("batchnorm_one_batch", "adam"),
        ("dropout", "sgd"),
        ("wgan_gp", "adam"),
        ("lstm", "adam"),
    ],
)
def test_one_long_graph_agrees_with_central_differences(name, optimizer):
    """Real steps differenced, and hand-written steps differentiated, are the same number to 1e-9."""
    expected, world = expected_of(name, optimizer, 3), warm_world(name, optimizer)
    long = reference.chained(world.discriminator, world.optimizer, world.d_loss, world.g_loss, world.batch(), 3)
    assert abs(long.item() - expected.value.item()) < 1e-12
    gradient = reference.filled(long, world.inputs)
    for way, slope in zip(expected.directions, expected.slopes, strict=True):
        assert abs(reference.along(gradient, way) - slope) < 1e-9 * abs(slope) + 1e-10


def test_one_long_graph_doubles_r1_on_a_reused_batch():
    """Why every step needs fresh leaves: theta^k left attached makes the penalty silently wrong."""
    world = warm_world("r1_on_reused_real")
    expected = expected_of("r1_on_reused_real", "adam", 3)
    real, fake = world.batch()
    real.requires_grad_()
    long = reference.chained(world.discriminator, world.optimizer, world.d_loss, world.g_loss, (real, fake), 3)
    gradient = reference.filled(long, world.inputs)
    claimed = [reference.along(gradient, way) for way in expected.directions]
    assert max(abs(a - b) for a, b in zip(claimed, expected.slopes, strict=True)) > 1e-3


def test_a_dead_relu_makes_the_naive_square_root_nan():
    """The measured warning: the value is fine, the naive gradient is NaN, the differences are finite."""
    world = warm_world("dead_relu")
    state = world.optimizer.state[world.discriminator[0].bias]
    assert (state["exp_avg_sq"][3:] == 0).all() and (state["exp_avg_sq"][:3] > 0).all()
    long = reference.chained(world.discriminator, world.optimizer, world.d_loss, world.g_loss, world.batch(), 3)
    assert torch.isfinite(long)
    assert all(torch.isnan(g).any() for g in reference.filled(long, world.inputs))
    assert all(abs(slope) > 0 for slope in expect(world, steps=3).slopes)


def test_a_kink_shows_as_a_large_error_bound():
    """A kink nearer than the smallest step is not trusted; farther away, it is seen past."""
    x = torch.zeros(1, dtype=torch.float64)
    near = reference.central_difference(lambda: (x + 0.0002).abs() + x**2, [x], [torch.ones_like(x)])
    assert near.slope != pytest.approx(1.0, abs=1e-2) and near.error > 1e-2
    far = reference.central_difference(lambda: (x + 0.003).abs() + x**2, [x], [torch.ones_like(x)])
    assert far.slope == pytest.approx(1.0, abs=1e-11)
    smooth = reference.central_difference(lambda: (x + 0.3).abs() + x.exp(), [x], [torch.ones_like(x)])
    assert smooth.slope == pytest.approx(2.0, abs=1e-11) and smooth.error < 1e-9
    assert x.item() == 0.0


@pytest.mark.parametrize("name", list(PROBLEMS))
def test_the_oracle_touches_nothing(name):
    """Live parameters, state, buffers and the random stream are as before."""
    world = warm_world(name)
    from snapshot import changed, snapshot

    before, state = snapshot(world), torch.get_rng_state()
    batch = world.batch()
    oracle(reference.value, world, steps=2)
    oracle(reference.first_term, world, steps=2)
    assert changed(before, snapshot(world)) == []
    assert torch.equal(state, torch.get_rng_state())
    assert not batch[0].requires_grad


def test_copies_carry_the_state_to_the_copied_parameters():
    """A copied optimizer steps the copied D from the live state: not from a fresh one."""
    world = warm_world("tied")
    twins = reference.copies(world.discriminator, world.optimizer)
    owned = {id(p) for p in twins.params()}
    assert owned == {id(p) for p in twins.discriminator.parameters()}
    assert {id(p) for p in twins.optimizers[0].state} == owned
    assert not owned & {id(p) for p in world.discriminator.parameters()}
    live = oracle(reference.value, world, steps=2)
    fresh = oracle(reference.value, world, steps=2, optimizer=lambda params: torch.optim.Adam(params, lr=0.02))
    assert abs(live - fresh) > 1e-4


def test_a_difference_starts_every_evaluation_from_the_same_random_state():
    """Without it dropout draws another mask at each end, and differences are off by orders of magnitude."""
    D = torch.nn.Dropout(0.5)
    x = torch.ones(50, dtype=torch.float64)
    way = [torch.ones_like(x)]
    fixed = reference.central_difference(lambda: D(x).sum(), [x], way)
    state = torch.get_rng_state()
    assert fixed.slope == pytest.approx(D(torch.ones(50)).sum().item(), rel=1e-9)
    torch.set_rng_state(state)
    drifting = copy.deepcopy(D)

    def moved():
        torch.seed()
        return drifting(x).sum()

    assert reference.central_difference(moved, [x], way).error > 1.0


def test_softplus_losses_are_the_cross_entropy():
    """The problems' own losses are what they say."""
    logits = torch.randn(7, dtype=torch.float64)
    ones = torch.ones_like(logits)
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    assert torch.allclose(softplus(-logits).mean(), bce(logits, ones))
    assert torch.allclose(softplus(logits).mean(), bce(logits, 0 * ones))
