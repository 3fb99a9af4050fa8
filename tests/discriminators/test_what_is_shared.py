"""What D shares with the world around it: classes, caches, the layout of memory, tensors of its own in the batch."""

import functools
import math
import threading
import weakref

import pytest
import torch
from torch import nn

from unroll_wrap import Compiled, UnrolledGeneratorLoss, non_saturating, verify

CASES = {}


def case(make):
    """→ D."""
    CASES[make.__name__] = make
    return make


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def net():
    return nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1))


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()

    def count(self):
        raise NotImplementedError

    def forward(self, x):
        return self.net(x) * (1 + 0.3 * math.sin(self.count()))


class OnTheClass(Counting):
    calls = 0

    def __init__(self):
        super().__init__()
        OnTheClass.calls = 0

    def count(self):
        OnTheClass.calls += 1
        return OnTheClass.calls


class InAListOfTheClass(Counting):
    seen: list[int] = []  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.seen.clear()

    def count(self):
        self.seen.append(1)
        return len(self.seen)


class OnTheThread(Counting):
    def __init__(self):
        super().__init__()
        self.here = threading.local()
        self.here.calls = 0

    def count(self):
        self.here.calls += 1
        return self.here.calls


class ByWeakReference(Counting):
    def __init__(self):
        super().__init__()
        self.calls = weakref.WeakKeyDictionary()

    def count(self):
        self.calls[self.net] = self.calls.get(self.net, 0) + 1
        return self.calls[self.net]


class InADistribution(nn.Module):
    """Torch's own object, whose tensor is moved in place."""

    def __init__(self):
        super().__init__()
        self.net = net()
        self.prior = torch.distributions.Normal(torch.zeros(2), torch.ones(2))

    def forward(self, x):
        self.prior.loc.lerp_(torch.ones(2), 0.1)
        return self.net((x - self.prior.loc) / self.prior.scale)


class Transposed(nn.Module):
    """A parameter with strides of its own, which the forward pass goes by."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 2).t())
        self.out = nn.Linear(5, 1)

    def forward(self, x):
        row = self.weight.as_strided((5,), (1,)) * (2.0 if self.weight.is_contiguous() else 1.0)
        return self.out(torch.tanh(x @ self.weight) * row)


for kind in (OnTheClass, InAListOfTheClass, OnTheThread, ByWeakReference, InADistribution, Transposed):
    CASES[kind.__name__] = kind


class World:
    """D, G and an optimizer, always the same."""

    def __init__(self, make, d_loss=non_saturating.d_loss, g_loss=non_saturating.g_loss, also=lambda D: ()):
        torch.manual_seed(1)
        self.D, self.G = make(), nn.Linear(3, 2)
        self.optimizer = torch.optim.SGD(self.D.parameters(), lr=0.3, momentum=0.5)
        self.d_loss, self.g_loss, self.also = d_loss, g_loss, also
        for i in range(6):
            self.real_step(*self.batch(i))

    def batch(self, seed, shift=0.0):
        torch.manual_seed(100 + seed)
        return torch.randn(8, 2) + 1, self.G(torch.randn(8, 3) + shift)

    def real_step(self, real, fake):
        self.optimizer.zero_grad()
        self.d_loss(self.D, real, fake.detach(), *self.also(self.D)).backward()
        self.optimizer.step()

    def value(self, seed, steps, shift=0.0):
        real, fake = self.batch(seed, shift)
        for _ in range(steps):
            self.real_step(real, fake)
        return self.g_loss(self.D, real, fake, *self.also(self.D)).item()


def assert_exact(make, slopes=True, **options):
    """Three calls, with a real step after each, beside worlds that have seen no call."""
    world = World(make, **options)
    unrolled = UnrolledGeneratorLoss(world.D, world.optimizer, world.d_loss, world.g_loss, steps=3)
    for turn in range(3):

        def right(shift=0.0, turn=turn):
            other = World(make, **options)
            for earlier in range(turn):
                other.real_step(*other.batch(20 + earlier))
            return other.value(20 + turn, 3, shift)

        z = torch.zeros((), requires_grad=True)
        real, fake = world.batch(20 + turn, z)
        loss = unrolled(real, fake, *world.also(world.D))
        (slope,) = torch.autograd.grad(loss, z, retain_graph=True)
        real, fake = world.batch(20 + turn)
        plain = torch.autograd.grad(unrolled(*world.batch(20 + turn, z), *world.also(world.D), steps=0), z)[0]
        # The worlds of the oracle begin counts of a class anew, so the next turn of this one comes after them.
        kept = {name: value for name, value in vars(type(world.D)).items() if name == "calls"}
        listed = list(getattr(type(world.D), "seen", ()))
        assert abs(loss.item() - right()) < 1e-12
        if slopes:
            expected = (right(1e-5) - right(-1e-5)) / 2e-5
            assert abs(slope - expected) < 1e-6 * abs(expected)
            assert abs(plain - expected) > 1e-3 * abs(expected)
        for name, value in kept.items():
            setattr(type(world.D), name, value)
        if hasattr(type(world.D), "seen"):
            type(world.D).seen[:] = listed
        world.real_step(real, fake)


@pytest.mark.parametrize("name", CASES)
def test_exact_in_every_call(name):
    """Real training goes on after a call as if there had been none."""
    assert_exact(CASES[name])


class Cached(nn.Module):
    """A norm that a function keeps by the version of the weight."""

    def __init__(self):
        super().__init__()
        self.a, self.out = nn.Linear(2, 5), nn.Linear(5, 1)

    @functools.cache  # noqa: B019
    def norm(self, version):  # noqa: ARG002
        return self.a.weight.detach().norm().item()

    def forward(self, x):
        return self.out(torch.tanh(self.a(x) / self.norm(self.a.weight._version)))


def test_what_a_call_computes_is_not_taken_for_a_later_version():
    """A cache outside of D keeps what an unroll has put into it. The item cuts the slope."""
    assert_exact(Cached, slopes=False)


class Shifted(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, x):
        self.mean.lerp_(torch.ones(2), 0.2)
        return self.net(x - self.mean)


def penalised(loss):
    return lambda D, real, fake, *own: loss(D, real, fake) + 0.1 * sum(t.square().sum() for t in own)


@pytest.mark.parametrize(
    "also",
    [lambda D: [D.net[0].weight], lambda D: [D.mean], lambda D: list(D.parameters())],
    ids=["parameter", "buffer", "parameters"],
)
def test_tensors_of_d_in_the_batch(also):
    """They are those of each step, as in real ones."""
    losses = {"d_loss": penalised(non_saturating.d_loss), "g_loss": penalised(non_saturating.g_loss)}
    assert_exact(Shifted, also=also, **losses)
    world = World(Shifted, also=also, **losses)
    unrolled = UnrolledGeneratorLoss(world.D, world.optimizer, world.d_loss, world.g_loss, steps=3)
    assert verify(unrolled, *world.batch(20), *also(world.D))


def test_tensors_of_d_in_the_batch_are_not_compiled(caplog):
    """A program would take them for constants, so the call is made without one, and says so."""
    losses = {"d_loss": penalised(non_saturating.d_loss), "g_loss": penalised(non_saturating.g_loss)}
    world = World(Shifted, also=lambda D: [D.net[0].weight], **losses)
    unrolled = UnrolledGeneratorLoss(world.D, world.optimizer, world.d_loss, world.g_loss, steps=3, backward=Compiled())
    found = unrolled(*world.batch(20), *world.also(world.D)).item()
    assert "the batch has a tensor of the discriminator" in caplog.text
    assert abs(found - world.value(20, 3)) < 1e-12
