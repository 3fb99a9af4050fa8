"""A zero_grad of the optimizer's own: what a step finds in .grad is its affair, and the first call proves the guess."""

import functools

import pytest
import torch
from situations import Accumulating, Situation, d_loss, g_loss
from torch import nn

from unroll_wrap import UnrolledDiscriminatorLoss, UnrolledGeneratorLoss, UnrolledSequence, verify

pytestmark = pytest.mark.usefixtures("float64")

STEPS = 3


class Cleared(torch.optim.Adam):
    """Does what torch's does, and counts."""

    calls = 0

    def zero_grad(self, set_to_none=True):
        type(self).calls += 1
        super().zero_grad(set_to_none)


class Zeros(torch.optim.Adam):
    def zero_grad(self, set_to_none=True):
        super().zero_grad(set_to_none=False)


class Fading(torch.optim.Adam):
    """Keeps a part of the old gradient."""

    def zero_grad(self, set_to_none=True):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.mul_(0.5)


class Decaying(torch.optim.Adam):
    """Decays the weights."""

    def zero_grad(self, set_to_none=True):
        super().zero_grad(set_to_none)
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.mul_(0.9)


class Noisy(torch.optim.Adam):
    """Starts from a gradient of its own."""

    def zero_grad(self, set_to_none=True):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = 0.1 * p.detach()


class Looped(Situation):
    """Whose loop calls zero_grad."""

    def real_step(self, real, fake):
        self.stepper.zero_grad()
        d_loss(self.D, real, fake.detach()).backward()
        self.stepper.step()

    def unrolled(self):
        return UnrolledGeneratorLoss(self.D, self.stepper, d_loss, g_loss, steps=STEPS)


def made(kind):
    return lambda D: kind(D.parameters(), lr=0.05)


@pytest.mark.parametrize("kind", [Cleared, Zeros])
def test_one_that_clears_is_exact(kind):
    """By real steps, and `verify` says the same."""
    situation = Looped(made(kind))
    real, fake = situation.batch(1000)
    unrolled, before = situation.unrolled(), situation.record()
    loss = unrolled(real, fake)
    assert situation.record() == before
    assert verify(unrolled, real, fake)
    assert abs(loss.item() - situation.value().item()) < 1e-12


WRONG = {kind.__name__: made(kind) for kind in (Fading, Decaying, Noisy)}
WRONG["Accumulating"] = lambda D: Accumulating(torch.optim.SGD(D.parameters(), lr=0.1))


@pytest.mark.parametrize("name", WRONG)
def test_one_that_does_more_is_refused(name):
    """The value of real steps is another one, which the message says, and nothing has moved."""
    situation = Looped(WRONG[name])
    real, fake = situation.batch(1000)
    unrolled, before = situation.unrolled(), situation.record()
    with pytest.raises(ValueError, match=f"real steps of your own objects.*{name} has a zero_grad of its own"):
        unrolled(real, fake)
    assert situation.record() == before
    unrolled.prove = False
    found = unrolled(real, fake).item()
    assert not verify(unrolled, real, fake)
    assert abs(found - situation.value().item()) > 1e-5


class Pretending(torch.optim.SGD):
    """Clears every second time, and says that it is torch's own."""

    calls = 0

    @functools.wraps(torch.optim.Optimizer.zero_grad)
    def zero_grad(self, set_to_none=True):
        self.calls += 1
        if self.calls % 2:
            super().zero_grad(set_to_none)


class Passing:
    """Passes everything on to the optimizer inside, by __getattr__."""

    def __init__(self, optimizer):
        self.optimizer, self.calls = optimizer, 0

    def __getattr__(self, name):
        if name == "optimizer":
            raise AttributeError(name)
        return getattr(self.optimizer, name)


class ClearingBySeconds(Passing):
    def zero_grad(self):
        self.calls += 1
        if self.calls % 2:
            self.optimizer.zero_grad()


class StepOfItsOwn(Passing):
    """Its step is found by __getattr__ too, and clips."""

    def __getattr__(self, name):
        return self.clipped if name == "step" else super().__getattr__(name)

    def clipped(self):
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                p.grad.clamp_(-0.02, 0.02)
        self.optimizer.step()


class StepOfTorchs(Passing):
    """Says that its step is torch's own, and clips."""

    @functools.wraps(torch.optim.Optimizer.step)
    def step(self, closure=None):
        StepOfItsOwn.clipped(self)


def sgd(D):
    return torch.optim.SGD(D.parameters(), lr=0.1)


@pytest.mark.parametrize("name", ["Pretending", "ClearingBySeconds"])
def test_one_that_hides_is_refused(name):
    """By a decorator that takes another's name, or by a wrapper that passes on its step and nothing else."""
    makes = {
        "Pretending": lambda D: Pretending(D.parameters(), lr=0.1),
        "ClearingBySeconds": lambda D: ClearingBySeconds(sgd(D)),
    }
    situation = Looped(makes[name])
    real, fake = situation.batch(1000)
    unrolled, before = situation.unrolled(), situation.record()
    with pytest.raises(ValueError, match="real steps of your own objects"):
        unrolled(real, fake)
    assert situation.record() == before
    assert not verify(unrolled, real, fake)


@pytest.mark.parametrize("wrapper", [Passing, StepOfItsOwn, StepOfTorchs])
def test_a_wrapper_whose_step_is_hard_to_find(wrapper):
    """It is found, and taken; the control passes on the step of the optimizer inside."""
    situation = Looped(lambda D: wrapper(sgd(D)))
    real, fake = situation.batch(1000)
    unrolled = situation.unrolled()
    assert abs(unrolled(real, fake).item() - situation.value().item()) < 1e-12
    assert verify(unrolled, real, fake)


def test_the_generators_optimizer_and_those_of_a_sequence():
    """The other losses of the package."""
    torch.manual_seed(0)
    G, D = nn.Linear(3, 2), nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer, of_D = Fading(G.parameters(), lr=0.05), torch.optim.Adam(D.parameters(), lr=0.05)
    real, z = torch.randn(6, 2), torch.randn(6, 3)

    def of_G(G, real, z):
        return g_loss(D, real, G(z))

    def of_critic(G, real, z):
        return d_loss(D, real, G(z))

    of_G(G, real, z).backward()
    with pytest.raises(ValueError, match="Fading has a zero_grad of its own"):
        UnrolledDiscriminatorLoss(G, optimizer, of_G, of_critic, steps=2)(real, z)
    rounds = [(G, optimizer, of_G), (D, of_D, lambda D, real, z: d_loss(D, real, G(z)))]
    with pytest.raises(ValueError, match="Fading has a zero_grad of its own"):
        UnrolledSequence(rounds, of_G, G, steps=2)(real, z)
