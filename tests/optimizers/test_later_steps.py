"""Traced steps in calls after the first: numbers, branches and settings that are others now, against K real steps.

The oracle deep-copies D and its optimizer, takes real steps, and differentiates by differences.
"""

import array
import copy
import itertools
import os
from dataclasses import dataclass
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from unroll_wrap import UnrolledGeneratorLoss, non_saturating, verify

pytestmark = pytest.mark.usefixtures("float64")

d_loss, g_loss = non_saturating
K = 3


class Base(torch.optim.Optimizer):
    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            state["t"] = state.get("t", 0) + 1
            p.sub_(self.rate(state["t"]) * p.grad)

    def rate(self, t):
        return 0.1


class Largest(Base):
    """A rate that grows with the largest gradient so far, as in D-adaptation."""

    def __init__(self, params):
        super().__init__(params)
        self.d = torch.tensor(0.1)

    @torch.no_grad()
    def step(self, closure=None):
        params = self.param_groups[0]["params"]
        for p in params:
            p.sub_(self.d * p.grad)
        self.d = torch.maximum(self.d, 0.2 * torch.stack([p.grad.norm() for p in params]).norm())


class LastFactor(Base):
    """The clip factor of the last step scales this one."""

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            state.setdefault("scale", torch.ones(()))
            p.sub_(0.1 * state["scale"] * p.grad)
            state["scale"] = torch.clamp(1 / (p.grad.norm() + 1e-12), max=1.0)


class CountOfClipped(Base):
    """A whole number of the steps with a large gradient."""

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            state.setdefault("n", torch.zeros((), dtype=torch.int64))
            p.sub_(0.1 * p.grad / (1 + state["n"]))
            state["n"] += (p.grad.norm() > 1).long()


class LargeOnes(Base):
    """The rate depends on how many entries of a gradient are large."""

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.sub_(0.1 / (1 + torch.nonzero(p.grad.abs() > 0.05).shape[0]) * p.grad)


def trained(make):
    torch.manual_seed(0)
    D = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1))
    stepper = make(D.parameters())
    for _ in range(3):
        train(D, stepper, *batch(1.0))
    return D, stepper


def train(D, stepper, real, fake):
    stepper.zero_grad()
    d_loss(D, real, fake).backward()
    stepper.step()


def batch(scale):
    generator = torch.Generator().manual_seed(5)
    real, fake = (scale * torch.randn(4, 2, generator=generator) for _ in range(2))
    return real + 1, fake


def after(D, stepper, real, fake):
    """g_loss after K real steps of deep copies."""
    memo: dict[int, Any] = {}
    D, twin = copy.deepcopy((D, stepper), memo)
    # torch leaves attributes of an optimizer's own out of its copies.
    more = {name: value for name, value in vars(stepper).items() if name not in vars(twin)}
    vars(twin).update(copy.deepcopy(more, memo))
    for _ in range(K):
        train(D, twin, real, fake)
    return g_loss(D, real, fake).item()


def assert_exact(unrolled, stepper, real, fake):
    fake = fake.requires_grad_()
    loss = unrolled(real, fake)
    (gradient,) = torch.autograd.grad(loss, fake)
    fake = fake.detach()
    assert loss.item() == pytest.approx(after(unrolled.discriminator, stepper, real, fake), abs=1e-13)
    along, h = torch.randn(fake.shape, generator=torch.Generator().manual_seed(1)), 1e-6
    values = [after(unrolled.discriminator, stepper, real, fake + sign * h * along) for sign in (1, -1)]
    assert (gradient * along).sum().item() == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5, abs=1e-8)
    return loss.item()


@pytest.mark.parametrize("make", [Largest, LastFactor, CountOfClipped, LargeOnes])
def test_numbers_that_depend_on_gradients_only_where_these_are_large(make):
    """The trace of a first call, with small ones, says nothing of that."""
    D, stepper = trained(make)
    unrolled = UnrolledGeneratorLoss(D, stepper, d_loss, g_loss, steps=K)
    values = [assert_exact(unrolled, stepper, *batch(scale)) for scale in (0.05, 30.0, 0.05, 3.0)]
    assert values[0] == pytest.approx(values[2], abs=1e-13) and values[0] != values[1]
    assert verify(unrolled, batch(1.0)[0], batch(1.0)[1].requires_grad_()).passed


class Elsewhere:
    milestone = 1000


SETTINGS = {"milestone": 1000}


class OnClass(Base):
    milestone = 1000

    def rate(self, t):
        return 0.1 if t <= self.milestone else 0.01


class OnOther(Base):
    def rate(self, t):
        return 0.1 if t <= Elsewhere.milestone else 0.01


class InGlobal(Base):
    def rate(self, t):
        return 0.1 if t <= SETTINGS["milestone"] else 0.01


class InEnvironment(Base):
    def rate(self, t):
        return 0.1 if t <= int(os.environ.get("MILESTONE", "1000")) else 0.01


class Replaced(Base):
    pass


CHANGES = {
    OnClass: lambda patch, at: patch.setattr(OnClass, "milestone", at),
    OnOther: lambda patch, at: patch.setattr(Elsewhere, "milestone", at),
    InGlobal: lambda patch, at: patch.setitem(SETTINGS, "milestone", at),
    InEnvironment: lambda patch, at: patch.setenv("MILESTONE", str(at)),
    Replaced: lambda patch, at: patch.setattr(Replaced, "rate", lambda self, t: 0.1 if t <= at else 0.01),
}


@pytest.mark.parametrize("more", [0, 1], ids=["the same counts", "a count that is new"])
@pytest.mark.parametrize("make", CHANGES)
def test_what_a_step_reads_from_elsewhere_at_a_later_inner_step(make, more, monkeypatch):
    """The first inner step is as before the change, and the last is not."""
    D, stepper = trained(make)
    unrolled = UnrolledGeneratorLoss(D, stepper, d_loss, g_loss, steps=K)
    assert_exact(unrolled, stepper, *batch(1.0))
    for _ in range(more):
        train(D, stepper, *batch(1.0))
    before = after(D, stepper, *batch(1.0))
    CHANGES[make](monkeypatch, 5 + more)
    assert assert_exact(unrolled, stepper, *batch(1.0)) != before


NOT_PUT_BACK = {
    "generator": lambda: (0.1 / n for n in range(1, 1000)),
    "cycle": lambda: itertools.cycle([0.1, 0.01]),
    "array": lambda: array.array("d", [0.0]),
}


@pytest.mark.parametrize("what", NOT_PUT_BACK)
def test_what_cannot_be_put_back_is_refused_before_it_moves(what):
    class Scheduled(Base):
        def __init__(self, params):
            super().__init__(params)
            self.rates = NOT_PUT_BACK[what]()

        def rate(self, t):
            if what == "array":
                self.rates[0] += 1
                return 0.1 / self.rates[0]
            return next(self.rates)

    D, stepper = trained(Scheduled)
    twin, same = trained(Scheduled)
    unrolled = UnrolledGeneratorLoss(D, stepper, d_loss, g_loss, steps=K)
    real, fake = batch(1.0)
    with pytest.raises(TypeError, match=rf"holds a {what} in \.rates, which cannot be put back"):
        unrolled(real, fake.requires_grad_())
    for one, opt in ((D, stepper), (twin, same)):
        train(one, opt, *batch(1.0))
    assert all(map(torch.equal, D.parameters(), twin.parameters()))


class Counting(Base):
    """Its zero_grad does more than clear."""

    cleared = 0

    def zero_grad(self, set_to_none=True):
        super().zero_grad(set_to_none)
        self.cleared += 1
        if self.cleared > 7:
            self.param_groups[0]["lr"] = 0.01

    def rate(self, t):
        return self.param_groups[0]["lr"]


def test_a_zero_grad_that_does_more_than_clear():
    """Whether that matters for the steps is found out in every call."""
    D, stepper = trained(Counting)
    unrolled = UnrolledGeneratorLoss(D, stepper, d_loss, g_loss, steps=K)
    with pytest.raises(ValueError, match="zero_grad"):
        for _ in range(6):
            assert_exact(unrolled, stepper, *batch(1.0))
            train(D, stepper, *batch(1.0))
    # The control is one that counts, and nothing goes by it.
    D, stepper = trained(type("OnlyCounting", (Counting,), {"rate": Base.rate}))
    unrolled = UnrolledGeneratorLoss(D, stepper, d_loss, g_loss, steps=K)
    for _ in range(6):
        assert_exact(unrolled, stepper, *batch(1.0))
        train(D, stepper, *batch(1.0))


@dataclass
class Clipped:
    """A wrapper that cannot be hashed."""

    optimizer: torch.optim.Optimizer

    def zero_grad(self):
        self.optimizer.zero_grad()

    def step(self):
        for p in self.optimizer.param_groups[0]["params"]:
            p.grad.clamp_(-0.1, 0.1)
        self.optimizer.step()


class WithSlots:
    __slots__ = ("optimizer",)

    def __init__(self, optimizer):
        self.optimizer = optimizer

    zero_grad, step = Clipped.zero_grad, Clipped.step


@pytest.mark.parametrize("wrapper", [Clipped, WithSlots])
def test_wrappers_without_a_hash_or_weak_references(wrapper):
    D, stepper = trained(lambda params: wrapper(torch.optim.SGD(params, lr=0.1)))
    unrolled = UnrolledGeneratorLoss(D, stepper, d_loss, g_loss, steps=K)
    for _ in range(2):
        real, fake = batch(1.0)
        assert verify(unrolled, real, fake.requires_grad_()).passed
        unrolled(real, fake)


class NumbersOfNumpy(Base):
    """An attribute and an option that each step replaces."""

    def __init__(self, params):
        super().__init__(params, numpy.float64(0.1))
        self.n = numpy.float64(0)

    def rate(self, t):
        self.n = self.n + 1
        self.param_groups[0]["lr"] *= numpy.float64(0.9)
        return float(self.param_groups[0]["lr"] / self.n)


def test_numbers_of_numpy():
    D, stepper = trained(NumbersOfNumpy)
    unrolled = UnrolledGeneratorLoss(D, stepper, d_loss, g_loss, steps=K)
    for _ in range(2):
        assert_exact(unrolled, stepper, *batch(1.0))


class Momentum(Base):
    """A momentum in the optimizer's state."""

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
            momentum.mul_(0.9).add_(p.grad)
            p.sub_(0.1 * momentum)


@pytest.mark.parametrize("make", [Momentum, torch.optim.Adam], ids=["traced", "with a rule"])
def test_memory_that_the_loop_has_exchanged_and_keeps(make):
    """An average of D is swapped in with ``p.data = ...`` for a call; what D gets back afterwards is as it was."""
    D, stepper = trained(make)
    unrolled = UnrolledGeneratorLoss(D, stepper, d_loss, g_loss, steps=K)
    assert_exact(unrolled, stepper, *batch(1.0))
    of_state = [t for state in stepper.state.values() for t in state.values() if torch.is_tensor(t) and t.dim()]
    moved = [*D.parameters(), *of_state]
    kept = [t.data for t in moved]
    before = [t.clone() for t in kept]
    for t in moved:
        t.data = 0.9 * t.data
    assert_exact(unrolled, stepper, *batch(1.0))
    assert all(map(torch.equal, kept, before))
    # The control: a real step writes to the new memory, which is other memory.
    train(D, stepper, *batch(1.0))
    assert all(map(torch.equal, kept, before)) and not any(map(torch.equal, moved, before))
