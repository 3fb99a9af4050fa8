"""is_unrolling, detach and no_grad: one loss function serves D's own training and the unroll."""

import pytest
import reference
import torch
from checks import assert_exact, call, expected_of, gradient_of, oracle, unrolled_of, warm_world
from problems import softplus

from unroll_wrap import PartialDetach, detach, is_unrolling, no_grad

STEPS = 3


def guarded_d_loss(D, real, fake):
    """A loop's usual D loss, written with the guards."""
    with no_grad():
        shifted = fake + 0.0
    return softplus(-D(real)).mean() + softplus(D(detach(shifted))).mean()


def test_outside_they_are_torchs_own():
    """detach cuts, no_grad records nothing, is_unrolling is False."""
    x = torch.ones(2, requires_grad=True)
    assert not is_unrolling()
    assert not detach(x * 2).requires_grad
    assert detach(x).data_ptr() == x.data_ptr()
    with no_grad():
        assert not torch.is_grad_enabled()
        assert not (x * 2).requires_grad
    assert torch.is_grad_enabled()


def test_inside_they_let_the_gradient_through():
    """The same guarded loss trains D on detached fakes outside and is exact inside."""
    world = warm_world()
    expected, unrolled = expected_of("mlp", "adam", STEPS), unrolled_of(world, steps=STEPS)
    for mode in ("argument", "closure"):
        world.d_loss = guarded_d_loss
        assert_exact(
            call(world, unrolled, mode, **({"d_loss": guarded_d_loss} if mode == "argument" else {})), world, expected
        )
    world.generator.zero_grad()
    guarded_d_loss(world.discriminator, *world.batch()).backward()
    assert all(p.grad is None for p in world.generator.parameters())


def test_detach_of_what_d_computes_is_refused():
    """In D's own step it is cut, and inside an unroll it would not be; torch's own detach is the control."""

    def relativistic(cut):
        return lambda D, real, fake: softplus(cut(D(fake)) - D(real)).mean() + softplus(D(fake)).mean()

    world = warm_world()
    with pytest.raises(ValueError, match=r"d_loss at inner step 0 gives unroll_wrap\.detach something that D has"):
        call(world, unrolled_of(world, steps=STEPS), d_loss=relativistic(detach))
    with pytest.warns(PartialDetach):
        call(world, unrolled_of(world, steps=STEPS), d_loss=relativistic(torch.Tensor.detach))


def test_is_unrolling_tells_the_inner_losses():
    """True in every inner d_loss, False again after the call; K-fold side effects can be guarded by it."""
    world, seen = warm_world(), []
    d_loss = world.d_loss

    def spying(D, *batch):
        seen.append(is_unrolling())
        return d_loss(D, *batch)

    call(world, unrolled_of(world, steps=STEPS), d_loss=spying)
    assert seen == [True] * STEPS
    assert not is_unrolling()
    spying(world.discriminator, *world.batch())
    assert seen[-1] is False


@pytest.mark.filterwarnings("ignore::unroll_wrap.PartialDetach")
def test_torchs_own_detach_is_honoured():
    """A loss that detaches D's real features (feature matching) cuts that path: one long graph says by how much."""
    world = warm_world()

    def features(D, x):
        return torch.tanh(D(x))

    def matching(cut):
        def g_loss(D, real, fake):
            on_real = features(D, real).mean()
            on_real = on_real.detach() if cut else on_real
            return (on_real - features(D, fake).mean()).pow(2)

        return g_loss

    gradients = {}
    for cut in (True, False):
        g_loss = matching(cut)
        long = reference.chained(world.discriminator, world.optimizer, world.d_loss, g_loss, world.batch(), STEPS)
        exact = reference.filled(long, world.inputs)
        for mode in ("argument", "closure"):
            world.g_loss = g_loss
            loss = call(world, unrolled_of(world, steps=STEPS), mode)
            assert abs(loss.item() - oracle(reference.value, world, steps=STEPS).item()) < 1e-12
            assert reference.gap(gradient_of(loss, world), exact) < 1e-9
        gradients[cut] = exact
    assert reference.gap(gradients[True], gradients[False]) > 1e-2
