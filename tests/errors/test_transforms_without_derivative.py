"""Transforms to which no derivative passes: the value would be that of real steps, and the second term would not."""

import pytest
import torch
from situations import Situation, d_loss, g_loss

from unroll_wrap import FiniteDifference, Recompute, Store, UnrolledGeneratorLoss, clip_grad_norm

pytestmark = pytest.mark.usefixtures("float64")

BACKWARDS = [Store(), Recompute(), FiniteDifference()]


def past_autograd(p):
    with torch.no_grad():
        return p.clamp_(-0.3, 0.3)


def halved_past_autograd(grads):
    with torch.no_grad():
        for g in grads:
            g.mul_(0.5)
    return grads


def one_detached(grads):
    return [g.detach() if g.dim() == 1 else 2 * g for g in grads]


CUT = {
    "p.data.clamp_": {"param_transform": lambda p: p.data.clamp_(-0.3, 0.3)},
    "p.detach()": {"param_transform": lambda p: p.detach().clamp(-0.3, 0.3)},
    "no_grad() on p": {"param_transform": past_autograd},
    "g.detach()": {"grad_transform": lambda grads: [g.detach() * 0.5 for g in grads]},
    "g.data": {"grad_transform": lambda grads: [g.data.mul_(0.5) for g in grads]},
    "no_grad() on g": {"grad_transform": halved_past_autograd},
    "one of several": {"grad_transform": one_detached},
}


def made(D):
    return torch.optim.Adam(D.parameters(), lr=0.05)


def unrolled(situation, **options):
    return UnrolledGeneratorLoss(situation.D, situation.stepper, d_loss, g_loss, steps=3, **options)


@pytest.mark.parametrize("backward", BACKWARDS, ids=str)
@pytest.mark.parametrize("name", CUT)
def test_refused(name, backward):
    situation = Situation(made)
    real, fake = situation.batch(1000)
    before = situation.record()
    transform = next(iter(CUT[name]))
    with pytest.raises(ValueError, match=rf"{transform} detaches its argument, of shape \(.*, or writes to it"):
        unrolled(situation, **CUT[name], backward=backward)(real, fake)
    assert situation.record() == before
    # The first term has no need of it, nor has the value.
    loss = unrolled(situation, **CUT[name], backward=backward, stop_gradient=True)(real, fake)
    with torch.no_grad():
        assert torch.equal(loss, unrolled(situation, **CUT[name], backward=backward)(real, fake))


@pytest.mark.parametrize("backward", BACKWARDS, ids=str)
def test_momentum_in_a_closure(backward):
    """A graph that goes on in an earlier step, which the derivative would miss."""
    situation, sums = Situation(made), []

    def momentum(grads):
        sums[:] = [0.9 * s + g for s, g in zip(sums, grads, strict=True)] if sums else grads
        return list(sums)

    real, fake = situation.batch(1000)
    with pytest.raises(ValueError, match="A transform computes with a tensor of shape .* none of this step's"):
        unrolled(situation, grad_transform=momentum, backward=backward)(real, fake)


FINE = {
    "in place": {"grad_transform": lambda grads: [g.mul_(0.5) for g in grads]},
    "clamp_": {"param_transform": lambda p: p.clamp_(-0.3, 0.3)},
    "zeros": {"grad_transform": lambda grads: [torch.zeros_like(g) if g.dim() == 1 else g for g in grads]},
    "the package's": {"grad_transform": clip_grad_norm(0.1)},
    "of D's parameters": {"grad_transform": lambda grads: [g + 0.1 * g.norm() for g in grads]},
    "nothing": {"grad_transform": lambda grads: grads, "param_transform": lambda p: p},
}


@pytest.mark.parametrize("backward", BACKWARDS, ids=str)
@pytest.mark.parametrize("name", FINE)
def test_the_control(name, backward):
    """What autograd sees passes, and a constant zero is no cut."""
    situation = Situation(made)
    unrolled(situation, **FINE[name], backward=backward)(*situation.batch(1000)).backward()
