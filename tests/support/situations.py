"""D, G and what steps D, built again from the seed for every difference, so that the oracle copies nothing."""

import types

import torch
from snapshot import describe
from torch import nn

from unroll_wrap import UnrolledGeneratorLoss, non_saturating

STEPS, WARM = 3, 12
d_loss, g_loss = non_saturating


class Situation:
    """D, what steps it and G, after some steps, always the same."""

    def __init__(self, make, warm=WARM):
        torch.manual_seed(1)
        self.D = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
        self.G = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        self.stepper = make(self.D)
        for i in range(warm):
            self.real_step(*self.batch(i))

    def batch(self, seed, shift=0.0):
        torch.manual_seed(seed)
        real, z = torch.randn(8, 2) + 1, torch.randn(8, 3)
        return real, self.G(z + shift)

    def real_step(self, real, fake):
        for p in self.D.parameters():
            p.grad = None
        d_loss(self.D, real, fake.detach()).backward()
        for one in self.stepper if isinstance(self.stepper, list) else [self.stepper]:
            one.step()

    def value(self, shift=0.0, steps=STEPS):
        """K real steps, and the generator's loss."""
        real, fake = self.batch(1000, shift)
        for _ in range(steps):
            self.real_step(real, fake)
        return g_loss(self.D, real, fake)

    def record(self):
        """All that the stepper and D lead to."""
        found, todo, seen = [], [self.stepper, *self.D.modules()], set()
        while todo:
            one = todo.pop()
            if id(one) in seen or not hasattr(one, "__dict__") or isinstance(one, (type, types.ModuleType)):
                continue
            seen.add(id(one))
            found.append(describe(vars(one)))
            todo += [v for held in vars(one).values() for v in (held if isinstance(held, (list, tuple)) else [held])]
        return found


def slope(make):
    def run(h):
        return Situation(make).value(h).item()

    def difference(h):
        return (run(h) - run(-h)) / (2 * h)

    return (4 * difference(5e-5) - difference(1e-4)) / 3


def along(loss, z):
    return torch.autograd.grad(loss, z, retain_graph=True)[0].sum().item()


def called(situation, steps=STEPS):
    """The loss, and its derivative with respect to a shift of the noise."""
    z = torch.zeros((), requires_grad=True)
    real, fake = situation.batch(1000, z)
    loss = UnrolledGeneratorLoss(situation.D, situation.stepper, d_loss, g_loss, steps=steps)(real, fake)
    return loss, along(loss, z)


def assert_exact(make, second_term=True):
    """Value to 1e-12, slope to 1e-6; the slope without the second term is another one."""
    situation = Situation(make)
    before = situation.record()
    loss, found = called(situation)
    assert situation.record() == before
    value = situation.value()
    assert abs(loss.item() - value.item()) < 1e-12 * abs(value.item())
    expected = slope(make)
    assert abs(found - expected) < 2e-7 * abs(expected)
    z = torch.zeros((), requires_grad=True)
    real, fake = situation.batch(1000, z)
    control = abs(along(g_loss(situation.D, real, fake), z) - expected)
    assert control > 1e-6 * abs(expected) if second_term else control < 1e-6 * abs(expected)


class Accumulating:
    """A wrapper that steps and clears every second time."""

    def __init__(self, optimizer):
        self.optimizer, self.count = optimizer, 0
        self.param_groups = optimizer.param_groups

    def step(self):
        self.count += 1
        if self.count % 2 == 0:
            self.optimizer.step()

    def zero_grad(self):
        if self.count % 2 == 0:
            self.optimizer.zero_grad()
