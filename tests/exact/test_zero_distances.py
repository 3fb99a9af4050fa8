"""Norms and spreads at 0: real steps go by torch's subgradient 0, and its second derivative there is NaN."""

import pytest
import torch
from checks import MODES, assert_exact_in, call, expect, unrolled_of
from optimizers import OPTIMIZERS
from problems import plain, softplus
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from unroll_wrap import Compiled, Recompute
from unroll_wrap.unrolling import step_gradients


def over_pairs(norm):
    """Minibatch discrimination: the mean distance to all samples, the sample itself included."""
    return lambda h: norm(h.unsqueeze(1) - h).mean(1, keepdim=True)


def beside_dead(function):
    """A function of features, one of which is 0 all over, or all the same."""
    return lambda h: function(h) + function(h * torch.zeros_like(h)) + function(h * 0 + 2)


FEATURES = {
    "norm": over_pairs(lambda d: d.norm(dim=2)),
    "last dimension": over_pairs(lambda d: torch.norm(d, dim=-1)),
    "linalg, kept": over_pairs(lambda d: torch.linalg.vector_norm(d, dim=-1, keepdim=True).squeeze(-1)),
    "order 3": over_pairs(lambda d: d.norm(3, dim=2)),
    "order 1.5": over_pairs(lambda d: d.norm(1.5, dim=2)),
    "order 1": over_pairs(lambda d: d.norm(1, dim=2)),
    "the largest": over_pairs(lambda d: d.norm(float("inf"), dim=2)),
    "aten": over_pairs(lambda d: torch.ops.aten.norm.ScalarOpt_dim(d, 2, [-1])),
    "all of it": beside_dead(lambda h: h.norm() * h[:, :1]),
    "cdist": lambda h: torch.cdist(h, h).mean(1, keepdim=True),
    "pairwise distance": lambda h: (
        F.pairwise_distance(h, h.flip(0) * 0 + h, eps=0.0).unsqueeze(1) + h.norm(dim=1)[:, None]
    ),
    "dist": lambda h: torch.stack([torch.stack([torch.dist(a, b) for b in h]).sum() for a in h]).unsqueeze(1),
    "std": beside_dead(lambda h: h.std(0).mean() * h[:, :1] + h.std(1, keepdim=True)),
    "std of all": beside_dead(lambda h: h.std() * h[:, :1]),
    "std and mean": beside_dead(lambda h: torch.mul(*torch.std_mean(h, 1, keepdim=True)) * h[:, :1]),
    "normalize": beside_dead(lambda h: F.normalize(h, dim=1)[:, :1]),
    "cosine similarity": beside_dead(lambda h: F.cosine_similarity(h, h.flip(0)).unsqueeze(1)),
    "power 1.5": lambda h: torch.cat([h * 0, h.abs()], 1).pow(1.5).sum(1, keepdim=True),
}
# These have a second derivative in torch, or another one is wrong first.
SMOOTH = {"order 1", "the largest"}


class Net(nn.Module):
    def __init__(self, further):
        super().__init__()
        self.first, self.last, self.further = nn.Linear(2, 4), nn.Linear(5, 1), further

    def forward(self, x):
        h = torch.tanh(self.first(x))
        return self.last(torch.cat([h, self.further(h)], 1))


def world_with(name):
    torch.manual_seed(0)
    return plain(Net(FEATURES[name]), OPTIMIZERS["adam"]).warm()


@pytest.mark.parametrize("name", list(FEATURES))
def test_a_distance_of_zero_in_d(name):
    world = world_with(name)
    assert_exact_in(MODES, world, unrolled_of(world, steps=3), expect(world, steps=3))


def test_recomputed_and_compiled(caplog):
    world = world_with("norm")
    expected = expect(world, steps=3)
    for backward in (Recompute(every=2), Compiled()):
        unrolled = unrolled_of(world, steps=3, backward=backward)
        for _ in range(2):
            assert_exact_in(MODES[:1], world, unrolled, expected)
    assert backward.in_use, caplog.text


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", sorted(set(FEATURES) - SMOOTH - {"cdist"}))
def test_without_the_repair_no_nan_is_returned(name, mode, monkeypatch):
    """The control: torch's own gives NaN there, which is told with the step and the operator, where they are known."""
    monkeypatch.setattr(step_gradients, "repair", lambda nodes: [])
    world = world_with(name)
    before = [p.clone() for p in world.discriminator.parameters()]
    with pytest.raises(ValueError, match=r"at inner step \d.*Backward\d|that it captures is not"):
        torch.autograd.grad(call(world, unrolled_of(world, steps=1), mode), world.inputs)
    if mode == "argument":
        with pytest.raises(ValueError, match=r"losses are finite.*at inner step 2.*Backward\d"):
            call(world, unrolled_of(world, steps=3), mode)
    assert all(map(torch.equal, before, world.discriminator.parameters()))


def test_a_penalty_on_a_critic_without_slope():
    """Where all units are dead the gradient penalty's norm is taken at 0."""

    def d_loss(D, real, fake):
        # All of the first layer is dead on what lies this far out.
        between = (0.3 * real - 50).detach().requires_grad_()
        (slope,) = torch.autograd.grad(D(between).sum(), between, create_graph=True)
        wgan = softplus(-D(real)).mean() + softplus(D(fake)).mean()
        return wgan + (slope.norm(2, dim=1) - 1).square().mean()

    torch.manual_seed(0)
    D = nn.Sequential(nn.Linear(2, 5), nn.CELU(), nn.ReLU(), nn.Linear(5, 1))
    with torch.no_grad():
        D[0].weight.abs_()
        D[0].bias.fill_(9.0)
    world = plain(D, OPTIMIZERS["adam"], d_loss=d_loss).warm()
    assert_exact_in(MODES, world, unrolled_of(world, steps=3), expect(world, steps=3))


class Checkpointed(nn.Module):
    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def forward(self, x):
        return checkpoint(self.inside, x, use_reentrant=False)


def test_within_a_checkpoint():
    """It gives out each tensor once, so nothing is repaired: torch's own is exact away from 0, and NaN at 0 is told."""

    def world_of(function):
        torch.manual_seed(0)
        return plain(Checkpointed(Net(function)), OPTIMIZERS["adam"]).warm()

    world = world_of(lambda h: F.normalize(h, dim=1)[:, :1])
    assert_exact_in(MODES, world, unrolled_of(world, steps=3), expect(world, steps=3))
    world = world_of(FEATURES["norm"])
    with pytest.raises(ValueError, match=r"at inner step 2.*Backward\d"):
        unrolled_of(world, steps=3)(*world.batch())


def test_a_nan_that_nothing_repairs_is_told():
    """torch.sinc at 0 has a first derivative, and NaN for a second one."""
    torch.manual_seed(0)
    world = plain(Net(lambda h: torch.sinc(h - h.detach())[:, :1]), OPTIMIZERS["adam"]).warm()
    with pytest.raises(ValueError, match=r"at inner step 2.*Function '\w+' returned nan.*eps.*stop_gradient"):
        unrolled_of(world, steps=3)(*world.batch())
    assert unrolled_of(world, steps=3, stop_gradient=True)(*world.batch()).isfinite()


@pytest.mark.filterwarnings("ignore::unroll_wrap.PartialDetach")
def test_large_gradients_are_not_taken_for_infinite():
    """The check is a sum, which overflows before its terms do."""

    def g_loss(D, real, fake):
        return softplus(-D(fake)).mean() + ((fake - fake.detach()) * 1e308).sum()

    world = world_with("order 1")
    real, fake = world.batch()
    fake = fake.detach().requires_grad_()
    loss = unrolled_of(world, steps=1)(real, fake, g_loss=g_loss)
    assert torch.autograd.grad(loss, fake)[0].isfinite().all()
