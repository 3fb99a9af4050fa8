"""FiniteDifference: close to the exact gradient by the error that it states, where no second derivative exists too."""

import itertools
import math
import random

import pytest
import reference
import torch
from checks import call, distance, expect, expected_of, gradient_of, oracle, unrolled_of, warm_world
from functions import Once, OnceNet, once_world
from problems import PROBLEMS, softplus
from torch import nn
from torch.utils.checkpoint import checkpoint

import unroll_wrap.evaluation.linear_pieces
from unroll_wrap import FiniteDifference, Recompute, Store, UnrolledGeneratorLoss, minimax

ONE_SIDED, CENTRAL = FiniteDifference(), FiniteDifference(central=True)
# In float64 √u is 1.5e-8 and ∛u² is 4e-11, times how much sharper than its parameters a loss bends.
BOUNDS = {ONE_SIDED: 2e-6, CENTRAL: 1e-7}
# Differences see through what is computed under no_grad, a power iteration say, as the docstring says.
# A layer that initialises itself in the first inner step does so under no_grad too.
CUT = [name for name, row in PROBLEMS.items() if row.chain or name == "actnorm_decided_in_the_unroll"]
SEEN_THROUGH = ["spectral_norm_legacy", "spectral_norm_new"]


def error(world, expected, backward, mode="argument", steps=3):
    """The relative distance from the oracle's gradient."""
    return distance(gradient_of(call(world, unrolled_of(world, steps=steps, backward=backward), mode), world), expected)


@pytest.mark.parametrize("backward", BOUNDS, ids=str)
@pytest.mark.parametrize("name", [name for name in PROBLEMS if name not in CUT])
def test_close_on_every_problem(name, backward):
    """Within the stated error, which the first term alone exceeds by far."""
    expected = expected_of(name, "adam", 3)
    assert error(warm_world(name), expected, backward) < BOUNDS[backward]
    assert distance(expected.control, expected) > 100 * BOUNDS[backward]


@pytest.mark.parametrize("backward", BOUNDS, ids=str)
@pytest.mark.parametrize("name", ["mlp", "batchnorm_one_batch", "r1_on_reused_real", "head_of_another_optimizer"])
def test_close_in_closures(name, backward):
    """The same where the losses capture the batch, or run the generator again."""
    for mode in ("closure", "rerun"):
        assert error(warm_world(name), expected_of(name, "adam", 3), backward, mode) < BOUNDS[backward], mode


@pytest.mark.parametrize("backward", BOUNDS, ids=str)
@pytest.mark.parametrize("name", SEEN_THROUGH)
def test_a_power_iteration_is_seen_through(name, backward):
    """Some percent off, which is neither an error of the difference nor a loss that is not deterministic."""
    assert 1e-2 < error(warm_world(name), expected_of(name, "adam", 3), backward) < 1e-1


@pytest.mark.parametrize(("central", "order"), [(False, 1), (True, 2)])
@pytest.mark.parametrize("name", ["mlp", "batchnorm_two_batches", "weight_norm_new", "conditional"])
def test_the_error_is_of_the_stated_order(name, central, order):
    """Halving eps halves the error of the one-sided quotient, and quarters that of the central one."""
    expected = expected_of(name, "adam", 3)
    errors = [error(warm_world(name), expected, FiniteDifference(eps, central)) for eps in (4e-3, 2e-3)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("backward", BOUNDS, ids=str)
def test_a_gradient_that_is_always_zero_does_not_drown_the_rest(backward):
    """A Wasserstein D's last bias: Adam magnifies its cotangent a millionfold, and the shift is all bias."""
    D = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    world = warm_world()
    world.discriminator, world.optimizer = D, torch.optim.Adam(D.parameters(), lr=0.02)
    world.d_loss, world.g_loss = lambda D, real, fake: D(fake).mean() - D(real).mean(), lambda D, _, f: -D(f).mean()
    world.warm()
    expected = expect(world, steps=3)
    assert error(world, expected, backward) < BOUNDS[backward]


@pytest.mark.parametrize("mode", ["argument", "closure", "rerun"])
def test_a_discriminator_without_second_derivative(mode):
    """Where Store and Recompute are an error with a remedy, the oracle's derivative comes out."""
    world = once_world()
    expected = expect(world, steps=3)
    for exact in (Store(), Recompute()):
        # Autograd itself says nothing: the error that torch leaves there is on no way to a leaf.
        with pytest.raises(RuntimeError, match=r"d_loss at inner step .*no second derivative.*FiniteDifference.*Once"):
            call(world, unrolled_of(world, steps=3, backward=exact), mode)
    for backward, bound in BOUNDS.items():
        assert error(world, expected, backward, mode) < bound
    assert distance(expected.control, expected) > 1e-2


def test_where_no_second_derivative_is_needed():
    """The first term alone, the plain loss, and an operator in g_loss are no error."""
    world = once_world()
    first = oracle(reference.first_term, world, steps=3)
    stopped = gradient_of(call(world, unrolled_of(world, steps=3, stop_gradient=True)), world)
    assert reference.gap(stopped, first) < 1e-11
    assert call(world, unrolled_of(world, steps=0)).item() == oracle(reference.value, world, steps=0).item()
    world = warm_world()
    world.g_loss = lambda D, real, fake: softplus(-Once.apply(D(fake))).mean()
    expected = expect(world, steps=3)
    assert distance(gradient_of(call(world, unrolled_of(world, steps=3)), world), expected) < 1e-7


class Cut(torch.autograd.Function):
    """tanh, whose gradient is computed without a graph, though nothing says that it has one derivative."""

    graph = False

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @classmethod
    def backward(cls, ctx, grad):
        (x,) = ctx.saved_tensors
        with torch.set_grad_enabled(cls.graph):
            return grad * (1 - x.tanh() ** 2)


class NoGradient(torch.autograd.Function):
    """Zero, whatever comes: a constant, with nothing to be cut."""

    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, grad):
        return torch.zeros_like(grad).detach()


def cut_world(function):
    class Net(OnceNet):
        def forward(self, x):
            return self.b(function.apply(self.a(x)) + self.a(x).tanh())

    world, D = warm_world(), Net().double()
    world.discriminator, world.optimizer = D, torch.optim.Adam(D.parameters(), lr=0.02, betas=(0.5, 0.9))
    return world.warm()


@pytest.mark.parametrize("backward", [Store(), Recompute()], ids=str)
def test_a_function_that_computes_its_gradient_without_a_graph(backward, monkeypatch):
    """Refused where autograd takes its second derivative to be 0; with a graph, and by differences, it is right."""
    with pytest.raises(RuntimeError, match=r"^Cut, .* computes its gradient without a graph.*FiniteDifference"):
        call(world := cut_world(Cut), unrolled_of(world, steps=3, backward=backward))
    monkeypatch.setattr(Cut, "graph", True)
    assert error(cut_world(Cut), expect(cut_world(Cut), steps=3), backward) < 1e-7
    monkeypatch.setattr(Cut, "graph", False)
    for differences, bound in BOUNDS.items():
        assert error(cut_world(Cut), expect(cut_world(Cut), steps=3), differences) < bound


def test_a_function_whose_gradient_is_a_constant():
    """Zero for every input: no second derivative is missing."""
    expected = expect(cut_world(NoGradient), steps=3)
    assert error(cut_world(NoGradient), expected, Store()) < 1e-7


@pytest.mark.parametrize("backward", BOUNDS, ids=str)
@pytest.mark.parametrize("noise", [1e-1, 1e-3])
def test_a_loss_that_is_not_deterministic_is_refused(backward, noise):
    """Label noise from Python's generator, however little it moves the loss; drawn from torch's it is replayed."""
    draw, world = random.Random(0), warm_world()

    def noisy(D, real, fake):
        return softplus(-D(real) * (1 + noise * draw.random())).mean() + softplus(D(fake)).mean()

    def replayed(D, real, fake):
        return softplus(-D(real) * (1 + noise * torch.rand(()))).mean() + softplus(D(fake)).mean()

    with pytest.raises(RuntimeError, match=r"not deterministic.*is_unrolling.*Store\(\)"):
        call(world, unrolled_of(world, steps=3, backward=backward), d_loss=noisy)
    gradients = []
    for one in (Store(), backward):
        torch.manual_seed(0)
        loss = call(world, unrolled_of(world, steps=3, backward=one), d_loss=replayed)
        gradients.append(gradient_of(loss, world))
    assert reference.gap(gradients[1], gradients[0]) < BOUNDS[backward]


@pytest.mark.parametrize("backward", BOUNDS, ids=str)
def test_single_precision(backward):
    """√u is 3e-4 there: still a hundredth of the second term."""
    world = warm_world()
    real = world.batch()[0].float()
    D, G = world.discriminator.float(), world.generator.float()
    optimizer = torch.optim.Adam(D.parameters(), lr=0.02, betas=(0.5, 0.9))
    optimizer.load_state_dict(world.optimizer.state_dict())
    z = torch.randn(6, 2)
    gradients = {}
    for one in (Store(), backward):
        unrolled = UnrolledGeneratorLoss(D, optimizer, world.d_loss, world.g_loss, steps=3, backward=one)
        gradients[one] = list(torch.autograd.grad(unrolled(real, G(z)), list(G.parameters())))
    first = UnrolledGeneratorLoss(D, optimizer, world.d_loss, world.g_loss, steps=3, stop_gradient=True)
    control = list(torch.autograd.grad(first(real, G(z)), list(G.parameters())))
    assert reference.gap(gradients[backward], gradients[Store()]) < 1e-3
    assert reference.gap(control, gradients[Store()]) > 1e-2


class Kinks(nn.Module):
    """A net with 30,000 kinks, at which torch writes one piecewise linear function or another."""

    def __init__(self, act):
        super().__init__()
        self.first, self.act, self.last = nn.Linear(2, 64), act, nn.Linear(64, 1)

    def forward(self, x):
        return self.last(self.act(self.first(x)))


def of_kinks(act, *backwards, captured=False):
    """The gradient of fake by each backward, in float32, and the first term alone."""
    torch.manual_seed(0)
    D = Kinks(act)
    optimizer = torch.optim.Adam(D.parameters(), lr=0.01, betas=(0.5, 0.9))
    real, fake = torch.randn(256, 2) + 1, torch.randn(256, 2, requires_grad=True)
    for _ in range(20):
        optimizer.zero_grad()
        minimax.d_loss(D, real, fake.detach()).backward()
        optimizer.step()
    rows = [{"backward": one} for one in backwards] + [{"stop_gradient": True}]
    batch, losses = (real, fake), minimax
    if captured:
        batch, losses = (real,), [lambda D, real, loss=loss: loss(D, real, fake) for loss in minimax]
    found = [UnrolledGeneratorLoss(D, optimizer, *losses, steps=5, **row)(*batch) for row in rows]
    return [torch.autograd.grad(loss, fake)[0] for loss in found]


class Checkpointed(nn.Module):
    def forward(self, x):
        return checkpoint(lambda x: (x.relu() - 0.1).abs(), x, use_reentrant=False)


ACTIVATIONS = {
    "checkpointed": Checkpointed(),
    "relu": nn.ReLU(),
    "relu in place": nn.ReLU(inplace=True),
    "leaky": nn.LeakyReLU(0.2),
    "leaky in place": nn.LeakyReLU(0.2, inplace=True),
    "hardtanh": nn.Hardtanh(-0.5, 0.5),
    "clamp": lambda x: x.clamp(min=-0.1),
    "abs": torch.abs,
}


@pytest.mark.parametrize("captured", [False, True], ids=["argument", "closure"])
@pytest.mark.parametrize("backward", BOUNDS, ids=str)
@pytest.mark.parametrize("act", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_units_that_change_their_piece(act, backward, captured, monkeypatch):
    """In float32 a shift moves some over their kinks. With these free, as the control is, the error is the jumps'."""
    exact, found, first = of_kinks(act, Store(), backward, captured=captured)
    second_term = (exact - first).norm()
    assert (found - exact).norm() < 1e-3 * second_term
    monkeypatch.setattr(unroll_wrap.evaluation.linear_pieces, "is_piecewise", lambda *_: False)
    free, _ = of_kinks(act, backward, captured=captured)
    assert (free - exact).norm() > 0.5 * second_term


def test_another_way_through_the_code():
    """An evaluation that calls other functions than the first is taken as it is: right in float64, but for kinks."""
    world, count = warm_world(), itertools.count()

    def branching(D, real, fake):
        x = real if next(count) % 2 else fake.relu()
        return world.d_loss(D, real, fake) + 0 * x.sum()

    exact = gradient_of(call(world, unrolled_of(world, steps=3)), world)
    found = gradient_of(call(world, unrolled_of(world, steps=3, backward=ONE_SIDED), d_loss=branching), world)
    assert reference.gap(found, exact) < BOUNDS[ONE_SIDED]


@pytest.mark.parametrize("wrong", [0, -1e-3, 0.0, float("nan"), float("inf"), True])
def test_a_wrong_eps(wrong):
    """Refused where it is written down."""
    with pytest.raises(ValueError, match="positive number, or None"):
        FiniteDifference(eps=wrong)


def test_the_value_is_that_of_real_steps():
    """Only the derivative is approximate."""
    world = warm_world("batchnorm_two_batches")
    value = oracle(reference.value, world, steps=3)
    assert call(world, unrolled_of(world, steps=3, backward=ONE_SIDED)).item() == pytest.approx(value.item(), rel=1e-12)
