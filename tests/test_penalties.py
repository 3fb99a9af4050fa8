"""A gradient penalty in d_loss asks for third derivatives: torch's of layer_norm is wrong, batch_norm has none."""

import threading

import pytest
import torch
from checks import MODES, assert_exact_in, expect
from optimizers import OPTIMIZERS
from problems import plain, softplus
from test_exact import unrolled_of
from torch import nn

from unroll_wrap import Recompute, Store, evaluate
from unroll_wrap.loss import SecondTermMissing

# Their eps is large, so that twice three digits of differences are left after dividing by a variance of six points.
NORMS = {
    "layer": lambda: nn.LayerNorm(6, eps=0.1),
    "layer plain": lambda: nn.LayerNorm(6, eps=0.1, elementwise_affine=False),
    "batch": lambda: nn.BatchNorm1d(6, eps=0.1),
    "batch plain": lambda: nn.BatchNorm1d(6, eps=0.1, affine=False, track_running_stats=False),
    "instance": lambda: InTwo(nn.InstanceNorm1d(2, eps=0.1, affine=True)),
    "group": lambda: nn.GroupNorm(2, 6, eps=0.1),
}


class InTwo(nn.Module):
    """Two channels of three."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm(x.view(len(x), 2, 3)).flatten(1)


def penalised(D, real, fake):
    between = 0.3 * real + 0.7 * fake
    between = between if between.requires_grad else between.requires_grad_()
    (slope,) = torch.autograd.grad(D(between).sum(), between, create_graph=True)
    return softplus(-D(real)).mean() + softplus(D(fake)).mean() + slope.pow(2).sum(1).mean()


def penalised_elsewhere(D, real, fake):
    """The same, its gradient taken in a thread of its own, as those of tensors on a GPU are."""
    between = 0.3 * real + 0.7 * fake
    between = between if between.requires_grad else between.requires_grad_()
    out, slope = D(between).sum(), []

    def take():
        slope.extend(torch.autograd.grad(out, between, create_graph=True))

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return softplus(-D(real)).mean() + softplus(D(fake)).mean() + slope[0].pow(2).sum(1).mean()


def world_with(name, d_loss=penalised):
    torch.manual_seed(0)
    D = nn.Sequential(nn.Linear(2, 6), NORMS[name](), nn.Tanh(), nn.Linear(6, 1))
    return plain(D, OPTIMIZERS["adam"], d_loss=d_loss).warm()


@pytest.mark.parametrize("backward", [Store(), Recompute(every=2)], ids=str)
@pytest.mark.parametrize("name", list(NORMS))
def test_a_penalty_through_a_norm(name, backward):
    """Exact, and the statistics move as they do in real steps: carried on, and then thrown away."""
    world = world_with(name)
    before = [t.clone() for t in world.discriminator.state_dict().values()]
    assert_exact_in(MODES, world, unrolled_of(world, steps=3, backward=backward), expect(world, steps=3), gap=1e-3)
    assert all(map(torch.equal, before, world.discriminator.state_dict().values()))


@pytest.mark.parametrize("name", ["layer", "batch"])
def test_a_penalty_whose_gradient_is_taken_in_another_thread(name):
    """Threads number their functions each for itself, so these look older than the call."""
    world = world_with(name, penalised_elsewhere)
    assert_exact_in(MODES, world, unrolled_of(world, steps=3), expect(world, steps=3), gap=1e-3)


def test_a_penalty_in_another_thread_captures_nothing():
    """A detached fake is still told, also where D begins with what is not linear in the penalty's own leaf."""

    def d_loss(D, real, fake):
        return penalised_elsewhere(D, real, fake.detach())

    world = world_with("layer", d_loss)
    world.discriminator.insert(0, nn.SiLU())
    with pytest.warns(SecondTermMissing):
        unrolled_of(world, steps=2)(*world.batch())


def test_statistics_after_a_penalty():
    """The written-out batch_norm leaves the running statistics that torch's leaves."""
    world, seen = world_with("batch"), []

    def g_loss(D, real, fake):
        seen.append([D[1].running_mean.clone(), D[1].running_var.clone(), D[1].num_batches_tracked.clone()])
        return softplus(-D(fake)).mean()

    unrolled = unrolled_of(world, steps=2)
    unrolled(*world.batch(), g_loss=g_loss)
    for _ in range(2):
        world.optimizer.zero_grad()
        penalised(world.discriminator, *[x.detach() for x in world.batch()]).backward()
        world.optimizer.step()
    g_loss(world.discriminator, *world.batch())
    # Adam makes steps of the rounding in the gradient of a bias before the norm, and the means follow it.
    assert all(torch.allclose(a, b, rtol=1e-8, atol=0) for a, b in zip(*seen, strict=True))
    assert not torch.allclose(seen[0][0], world_with("batch").discriminator[1].running_mean, rtol=1e-3)


@pytest.mark.parametrize("name", ["layer", "instance"])
def test_torchs_own_would_not_do(name, monkeypatch):
    """The control: without the replacement the one is wrong, the other raises."""
    monkeypatch.setattr(evaluate.Evaluator, "__post_init__", with_torchs_own(evaluate.Evaluator.__post_init__))
    world = world_with(name)
    unrolled = unrolled_of(world, steps=3)
    with pytest.raises((AssertionError, RuntimeError), match=r"gradient is off|3rd\+ order"):
        assert_exact_in(MODES[:1], world, unrolled, expect(world, steps=3), gap=1e-3)


def with_torchs_own(post_init):
    def replaced(self):
        post_init(self)
        self._third_order = True

    return replaced


def with_strides():
    """A convolution of the kind that an unroll runs by an operator of its own."""
    torch.manual_seed(0)
    convolution = nn.Sequential(nn.Unflatten(1, (1, 1, 2)), nn.Conv2d(1, 2, 2, 2, 1), nn.Flatten())
    return plain(nn.Sequential(convolution, nn.Tanh(), nn.Linear(4, 1)), OPTIMIZERS["adam"], d_loss=penalised).warm()


def penalised_by_transforms(D, real, fake):
    """The same penalty as torch.func writes it, one sample at a time where D does not mix them."""
    between = 0.3 * real + 0.7 * fake
    if any(isinstance(m, nn.BatchNorm1d) for m in D):
        slope = torch.func.grad(lambda x: D(x).sum())(between)
    else:
        slope = torch.func.vmap(torch.func.grad(lambda x: D(x.unsqueeze(0)).sum()))(between)
    return softplus(-D(real)).mean() + softplus(D(fake)).mean() + slope.pow(2).sum(1).mean()


# Of "batch" torch.func itself refuses the statistics, which change in place.
@pytest.mark.parametrize("name", ["layer", "batch plain", "instance", "group", "strided convolution"])
def test_a_penalty_by_the_transforms_of_torch_func(name):
    """What an unroll puts in the place of torch's operators goes with vmap and grad as well."""
    world = with_strides() if name == "strided convolution" else world_with(name)
    expected = expect(world, steps=3)
    world.d_loss = penalised_by_transforms
    assert_exact_in(MODES, world, unrolled_of(world, steps=3), expected, gap=1e-3)
