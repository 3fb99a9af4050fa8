"""Batches of every kind: in objects, drawn by step, complex, changed by a loss, and keywords of any name."""

import copy
import warnings
from dataclasses import dataclass

import numpy
import pytest
import torch
from snapshot import changed, snapshot
from torch import nn
from torch.nn.functional import softplus

from unroll_wrap import FiniteDifference, PartialDetach, Recompute, Store, UnrolledGeneratorLoss, diagnose, verify

K = 2


@dataclass
class Pair:
    real: torch.Tensor
    fake: torch.Tensor


class Slots:
    __slots__ = ("fake", "real")

    def __init__(self, real, fake):
        self.real, self.fake = real, fake


class Row(tuple):
    """A tuple whose constructor takes something else."""

    __slots__ = ()

    def __new__(cls, real, fake):
        return super().__new__(cls, (real, fake))

    real = property(lambda self: self[0])
    fake = property(lambda self: self[1])


class World:
    """Two players, warm, and the batches of K steps."""

    def __init__(self):
        torch.manual_seed(0)
        self.G = nn.Linear(3, 4).double()
        self.D = nn.Sequential(nn.Linear(2, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 1)).double()
        self.opt_D = torch.optim.Adam(self.D.parameters(), 0.05, betas=(0.5, 0.9))
        self.z = torch.randn(K + 1, 6, 3).double()
        self.reals = torch.randn(K + 1, 6, 2).double()
        for _ in range(3):
            self.opt_D.zero_grad()
            self.D(torch.randn(6, 2).double()).square().mean().backward()
            self.opt_D.step()

    @property
    def discriminator(self):
        return self.D

    @property
    def generator(self):
        return self.G

    def optimizers(self):
        return [self.opt_D]

    def fake(self, k):
        return self.G(self.z[k])[:, :2]


def d_loss(D, pair):
    return softplus(-D(pair.real)).mean() + softplus(D(pair.fake)).mean()


def g_loss(D, pair):
    return softplus(-D(pair.fake)).mean()


def after(world, batch, resample=None, d_loss=d_loss, g_loss=g_loss):
    """`g_loss` after K real steps of a copy, each on its own batch."""
    world = copy.deepcopy(world)
    for k in range(K):
        world.opt_D.zero_grad()
        d_loss(world.D, *(resample(world, k) if resample else batch(world))).backward()
        world.opt_D.step()
    return g_loss(world.D, *batch(world)).item()


def assert_exact(world, loss, real, tolerance=1e-6):
    """Value to 1e-12, and the gradient by G along a direction; the control: that of the plain loss differs."""
    assert abs(loss.item() - real(world)) < 1e-12
    loss.backward()
    found, shift, values = [p.grad for p in world.G.parameters()], 1e-5, []
    for sign in (1, -1):
        moved = copy.deepcopy(world)
        with torch.no_grad():
            for p, g in zip(moved.G.parameters(), found, strict=True):
                p.add_(g, alpha=sign * shift)
        values.append(real(moved))
    along = sum(g.square().sum().item() for g in found)
    assert abs((values[0] - values[1]) / (2 * shift) - along) < tolerance * along


@pytest.mark.parametrize("backward", [Store(), Recompute(), FiniteDifference(central=True)], ids=repr)
@pytest.mark.parametrize("kind", [Pair, Slots, Row])
def test_an_object_that_resample_makes(kind, backward):
    """The graph of its fake is made inside the call, and every evaluation meets it."""

    def batch(world):
        return (kind(world.reals[K], world.fake(K)),)

    def resample(world, k):
        return (kind(world.reals[k], world.fake(k)),)

    world = World()
    unrolled = UnrolledGeneratorLoss(
        world.D, world.opt_D, d_loss, g_loss, steps=K, backward=backward, resample=lambda k: resample(world, k)
    )
    loss = unrolled(*batch(world))
    assert_exact(world, loss, lambda world: after(world, batch, resample))
    assert verify(unrolled, *batch(world)).passed


def test_a_resample_that_asks_the_discriminator():
    """Hard negatives: D in train mode moves its statistics, in the call and in an examination of it."""
    world = World()

    def resample(world, k):
        fakes = world.fake(k)
        with torch.no_grad():
            hardest = world.D(fakes)[:, 0].topk(4).indices
        return world.reals[k], fakes[hardest]

    def of_d(D, real, fake):
        return d_loss(D, Pair(real, fake))

    def of_g(D, real, fake):
        return g_loss(D, Pair(real, fake))

    def batch(world):
        return world.reals[K], world.fake(K)

    unrolled = UnrolledGeneratorLoss(world.D, world.opt_D, of_d, of_g, steps=K, resample=lambda k: resample(world, k))
    before = snapshot(world)
    loss = unrolled(*batch(world))
    assert verify(unrolled, *batch(world)).passed
    diagnose(unrolled, *batch(world))
    assert changed(before, snapshot(world)) == []
    assert_exact(world, loss, lambda world: after(world, batch, resample, of_d, of_g))


def test_a_resampled_batch_that_a_loss_changes():
    """Each step has tensors of its own, so nothing is wrong with it."""
    world = World()

    def noisy(D, real, fake):
        return d_loss(D, Pair(real.add_(0.1), fake))

    def of_g(D, real, fake):
        return g_loss(D, Pair(real, fake))

    def resample(world, k):
        return world.reals[k].clone(), world.fake(k)

    def batch(world):
        return world.reals[K], world.fake(K)

    unrolled = UnrolledGeneratorLoss(world.D, world.opt_D, noisy, of_g, steps=K, resample=lambda k: resample(world, k))
    assert verify(unrolled, *batch(world)).passed
    loss = unrolled(*batch(world))
    assert_exact(world, loss, lambda world: after(world, batch, resample, noisy, of_g))


@pytest.mark.parametrize("where", ["d_loss", "front of D", ".data", "numpy"])
def test_a_fake_that_is_changed_in_place(where):
    """In a loop the change adds up from step to step, and each evaluation here has a copy: it is refused."""
    world = World()
    ways = {
        "d_loss": lambda fake: fake.mul_(1.5),
        ".data": lambda fake: (fake.data.add_(0.5), fake)[1],
        "numpy": lambda fake: (numpy.add(fake.detach().numpy(), 0.5, out=fake.detach().numpy()), fake)[1],
    }
    scaled = ways.get(where, lambda fake: fake)
    if where == "front of D":
        world.D = nn.Sequential(nn.SiLU(inplace=True), world.D)

    def of_d(D, real, fake):
        return softplus(-D(real.clone())).mean() + softplus(D(scaled(fake))).mean()

    def copied(D, real, fake):
        return of_d(D, real, fake.clone())

    def of_g(D, real, fake):
        return softplus(-D(fake.clone())).mean()

    def batch(world):
        return world.reals[K], world.fake(K)

    before = snapshot(world)
    with pytest.raises(ValueError, match="d_loss at inner step 0 changes a tensor of the batch in place"):
        UnrolledGeneratorLoss(world.D, world.opt_D, of_d, of_g, steps=K)(*batch(world))
    assert changed(before, snapshot(world)) == []
    loss = UnrolledGeneratorLoss(world.D, world.opt_D, copied, of_g, steps=K)(*batch(world))
    assert_exact(world, loss, lambda world: after(world, batch, None, copied, of_g))


def test_a_loss_of_the_generator_may_change_its_fake():
    """It is evaluated once. The mean over the steps is not."""
    world = World()

    def of_d(D, real, fake):
        return d_loss(D, Pair(real, fake))

    def of_g(D, real, fake):
        return softplus(-D(fake.mul_(0.5))).mean()

    def batch(world):
        return world.reals[K], world.fake(K)

    loss = UnrolledGeneratorLoss(world.D, world.opt_D, of_d, of_g, steps=K)(*batch(world))
    assert_exact(world, loss, lambda world: after(world, batch, None, of_d, of_g))
    with pytest.raises(ValueError, match="g_loss changes a tensor of the batch in place"):
        UnrolledGeneratorLoss(world.D, world.opt_D, of_d, of_g, steps=K, average=True)(*batch(world))


@pytest.mark.parametrize("backward", [Store(), FiniteDifference(central=True)], ids=repr)
def test_a_complex_fake(backward):
    """As a generator of spectra makes it."""
    world = World()

    def spectrum(world, k):
        return torch.view_as_complex(world.G(world.z[k]).reshape(6, 2, 2))

    def of_d(D, real, fake):
        return d_loss(D, Pair(real, fake.abs() + 0.1 * fake.real))

    def of_g(D, real, fake):
        return g_loss(D, Pair(real, fake.abs() + 0.1 * fake.real))

    def batch(world):
        return world.reals[K], spectrum(world, K)

    unrolled = UnrolledGeneratorLoss(world.D, world.opt_D, of_d, of_g, steps=K, backward=backward)
    loss = unrolled(*batch(world))
    assert_exact(world, loss, lambda world: after(world, batch, None, of_d, of_g))
    assert verify(unrolled, *batch(world)).passed


@pytest.mark.parametrize("name", ["name", "loss", "unrolled", "func", "params", "batch"])
def test_a_keyword_of_any_name(name):
    """The losses' own; a control tells that they receive it."""
    world, seen = World(), []

    def of_d(D, real, fake, **given):
        seen.append(given)
        return d_loss(D, Pair(real, fake))

    def of_g(D, real, fake, **given):
        seen.append(given)
        return g_loss(D, Pair(real, fake))

    unrolled = UnrolledGeneratorLoss(world.D, world.opt_D, of_d, of_g, steps=K)
    real, fake = world.reals[K], world.fake(K)
    assert verify(unrolled, real, fake, **{name: "mine"}).passed
    unrolled(real, fake, **{name: "mine"})
    assert seen and all(given == {name: "mine"} for given in seen)


@pytest.mark.parametrize("holds", ["no tensor", "a fake"])
def test_a_container_that_the_losses_write_to(holds):
    """A ramp that counts in a dict: it counts here as in the loop, and in a container that is copied it is refused."""

    def ramped(D, real, fake, state):
        state["n"] = state.get("n", 0) + 1
        return d_loss(D, Pair(real, state.get("fake", fake))) * (1 + state["n"])

    def of_g(D, real, fake, state):
        return g_loss(D, Pair(real, fake)) * (1 + state["n"])

    def batch(world):
        fake = world.fake(K)
        return world.reals[K], fake, {"n": 3} | ({"fake": fake} if holds == "a fake" else {})

    world = World()
    unrolled = UnrolledGeneratorLoss(world.D, world.opt_D, ramped, of_g, steps=K)
    if holds == "a fake":
        with pytest.raises(ValueError, match="d_loss at inner step 0 writes to a dict of the batch"):
            unrolled(*batch(world))
        return

    def real(world):
        real, fake, state = batch(world)
        shared = real, fake.detach(), state
        return after(world, lambda _: shared, None, ramped, of_g)

    assert verify(unrolled, *batch(world)).passed
    assert_exact(world, unrolled(*batch(world)), real)


def test_a_batch_that_a_loss_knows_by_identity_and_attributes():
    """What requires no grad is the user's own object, whose flag a penalty may switch; a fake keeps its attributes."""
    world = World()
    kept = world.reals[K].clone()

    def of_d(D, real, fake):
        kept.requires_grad_()
        (g,) = torch.autograd.grad(D(real).sum(), kept, create_graph=True)
        weight = 2.0 if real is kept else 1.0
        return weight * d_loss(D, Pair(real, fake)) + fake.weight * g.square().mean()

    def of_g(D, real, fake):
        return fake.weight * g_loss(D, Pair(real, fake))

    def batch(world):
        fake = world.fake(K)
        fake.weight = 3.0
        return kept, fake

    def real(world):
        shared = kept, batch(world)[1].detach()
        shared[1].weight = 3.0
        return after(world, lambda _: shared, None, of_d, of_g)

    unrolled = UnrolledGeneratorLoss(world.D, world.opt_D, of_d, of_g, steps=K)
    assert verify(unrolled, *batch(world)).passed
    loss = unrolled(*batch(world))
    assert not kept.requires_grad and kept.grad is None
    assert_exact(world, loss, real)


KEPT = {
    "features of D": lambda D, real, fake, keep: keep.append(torch.tanh(D[0](real)).mean(0)),
    "scores": lambda D, real, fake, keep: keep.append(D(fake)),
    "the fake": lambda D, real, fake, keep: keep.append(fake),
    "made of the fake": lambda D, real, fake, keep: keep.append(fake.tanh()),
    "detached": lambda D, real, fake, keep: keep.append(D(fake).detach()),
}


@pytest.mark.parametrize("backward", [Store(), Recompute(), FiniteDifference()], ids=repr)
@pytest.mark.parametrize("where", ["a list", "D"])
@pytest.mark.parametrize("what", KEPT)
def test_what_a_loss_keeps_with_its_graph(what, where, backward):
    """A later loss that computes with it is refused, because a part of its derivative would be lost."""
    world = World()
    world.D.kept = torch.zeros(())

    def of_d(D, real, fake):
        keep = []
        KEPT[what](D, real, fake, keep)
        if where == "D":
            D.kept = keep[0]
        else:
            kept.append(keep[0])
        return d_loss(D, Pair(real, fake))

    def of_g(D, real, fake):
        return g_loss(D, Pair(real, fake)) + 0.1 * (D.kept if where == "D" else kept[-1]).square().mean()

    kept = []
    unrolled = UnrolledGeneratorLoss(world.D, world.opt_D, of_d, of_g, steps=K, backward=backward)
    before = snapshot(world)
    given = world.reals[K], world.fake(K)
    if what == "detached":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PartialDetach)
            unrolled(*given)
    else:
        with pytest.raises(ValueError, match="g_loss computes with a tensor that a loss has kept, with its graph"):
            unrolled(*given)
    assert changed(before, snapshot(world)) == []


def test_hooks_and_flags_of_the_batch():
    """A hook that a loss leaves on real adds up in a loop: it is refused. Flags and .grad are put back."""
    world = World()
    given = world.reals[K].clone(), world.fake(K)

    def penalised(D, real, fake, hook=None):
        real.requires_grad_()
        if hook:
            real.register_hook(hook)
        (g,) = torch.autograd.grad(D(real).sum(), real, create_graph=True)
        return d_loss(D, Pair(real, fake)) + g.square().mean()

    def of_g(D, real, fake, **_):
        (g,) = torch.autograd.grad(D(real).sum(), real, create_graph=True)  # d_loss has switched it on, as in a loop.
        return g_loss(D, Pair(real, fake)) + g.square().mean()

    def real(world):
        shared = given[0].detach().clone(), world.fake(K).detach()
        return after(world, lambda _: shared, None, penalised, of_g)

    unrolled = UnrolledGeneratorLoss(world.D, world.opt_D, penalised, of_g, steps=K)
    assert_exact(world, unrolled(*given), real)
    assert not given[0].requires_grad and given[0].grad is None
    with pytest.raises(ValueError, match="registers a hook on a tensor of the batch"):
        unrolled(*given, hook=lambda g: 0.5 * g)
    assert not given[0].requires_grad and not given[0]._backward_hooks


def test_a_graph_written_into_the_batch():
    """real += fake.mean() makes the user's own tensor a part of a graph; it is none afterwards."""
    world = World()
    reals = torch.randn(2, 6, 2).double()
    for real in (reals[0].clone(), reals[0]):
        before = real.clone()

        def d_loss_in_place(D, real, fake):
            return d_loss(D, Pair(real.add_(fake.mean()), fake))

        unrolled = UnrolledGeneratorLoss(
            world.D, world.opt_D, d_loss_in_place, lambda D, real, fake: g_loss(D, Pair(real, fake)), steps=K
        )
        # A loss gets an alias of a view, and torch itself says of that that it was changed.
        with pytest.raises((ValueError, RuntimeError), match="in place"):
            unrolled(real, world.fake(K))
        assert real.is_leaf and not real.requires_grad and torch.equal(real, before)


@pytest.mark.parametrize("holds", ["a dataclass", "a closure", "an argument"])
def test_an_unrolled_loss_within_another(holds):
    """g_loss asks another discriminator's unrolled loss about the fake that it is given."""
    world, other = World(), World()

    def inner(fake):
        def of_d(D, *batch):
            return d_loss(D, batch[0] if holds == "a dataclass" else Pair(world.reals[K], batch[0] if batch else fake))

        def of_g(D, *batch):
            return g_loss(D, batch[0] if holds == "a dataclass" else Pair(None, batch[0] if batch else fake))

        batch = {"a dataclass": [Pair(world.reals[K], fake)], "a closure": [], "an argument": [fake]}[holds]
        return UnrolledGeneratorLoss(other.D, other.opt_D, of_d, of_g, steps=K)(*batch)

    def of_d(D, real, fake):
        return d_loss(D, Pair(real, fake))

    def of_g(D, real, fake):
        return g_loss(D, Pair(real, fake)) + inner(fake)

    def batch(world):
        return world.reals[K], world.fake(K)

    def real(moved):
        within = copy.deepcopy(other)
        shared = batch(moved)[0], batch(moved)[1].detach()
        value = after(moved, lambda _: shared, None, of_d, lambda D, real, fake: g_loss(D, Pair(real, fake)))
        return value + after(within, lambda _: (Pair(*shared),))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PartialDetach)
        loss = UnrolledGeneratorLoss(world.D, world.opt_D, of_d, of_g, steps=K)(*batch(world))
    assert_exact(world, loss, real)


class Mean(nn.Module):
    """Makes a running mean in its first forward pass, and writes to it in the later ones."""

    def __init__(self):
        super().__init__()
        self.mean = None

    def forward(self, x):
        with torch.no_grad():
            if self.mean is None:
                self.mean = x.mean(0)
            else:
                self.mean.lerp_(x.mean(0), 0.5)
        return x - self.mean


@pytest.mark.parametrize("backward", [Recompute(), Recompute(2), FiniteDifference(central=True)], ids=repr)
def test_a_statistic_that_the_first_step_makes(backward):
    """Later steps write to it, and a replay finds it as it was."""
    worlds, gradients = [World(), World()], []
    for world, one in zip(worlds, (Store(), backward), strict=True):
        world.D = nn.Sequential(nn.Linear(2, 5), Mean(), nn.Tanh(), nn.Linear(5, 1)).double()
        torch.manual_seed(3)
        for p in world.D.parameters():
            nn.init.normal_(p, std=0.5)
        optimizer = torch.optim.SGD(world.D.parameters(), 0.3)
        losses = [lambda D, *pair: d_loss(D, Pair(*pair)), lambda D, *pair: g_loss(D, Pair(*pair))]
        unrolled = UnrolledGeneratorLoss(world.D, optimizer, *losses, steps=3, backward=one)
        unrolled(world.reals[K], world.fake(K)).backward()
        assert world.D[1].mean is None
        gradients.append(torch.cat([p.grad.flatten() for p in world.G.parameters()]))
    stored, found = gradients
    # A difference sees the dependence that no_grad() cuts.
    assert (found - stored).norm() < (0.2 if isinstance(backward, FiniteDifference) else 1e-12) * stored.norm()
