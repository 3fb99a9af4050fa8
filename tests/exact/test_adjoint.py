"""Gradients and derivatives by formulas over a loss's own graph, against autograd with a graph of the gradient."""

import pytest
import reference
import torch
from checks import call, gradient_of, unrolled_of, warm_world
from torch import Tensor, nn
from torch.nn import functional as F

from unroll_wrap import UnrolledGeneratorLoss
from unroll_wrap.evaluation.graph import now, reach
from unroll_wrap.operators.adjoint import _plans, adjoint
from unroll_wrap.operators.formulas import One
from unroll_wrap.operators.formulas_of_operators import FORMULAS
from unroll_wrap.operators.replaced import twice_differentiable
from unroll_wrap.optimizers.block import Joined
from unroll_wrap.unrolling import unroll

NETS = {
    "linear": lambda: nn.Linear(4, 1),
    "no bias": lambda: nn.Sequential(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 1, bias=False)),
    "relu": lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), nn.ReLU(inplace=True), nn.Linear(3, 1)),
    "leaky": lambda: nn.Sequential(
        nn.Linear(4, 5), nn.LeakyReLU(0.2), nn.Linear(5, 3), nn.LeakyReLU(0.1, inplace=True)
    ),
    "sigmoid": lambda: nn.Sequential(nn.Linear(4, 5), nn.Sigmoid(), nn.Linear(5, 1), nn.Sigmoid()),
    "softplus": lambda: nn.Sequential(nn.Linear(4, 5), nn.Softplus(beta=2, threshold=1), nn.Linear(5, 1)),
    "norm": lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 1)),
    "plain norm": lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, affine=False), nn.Tanh(), nn.Linear(5, 1)),
    "norm first": lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1)),
    "unflattened": lambda: nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(2, 1)),
    "strided": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 2, 2, 2), nn.BatchNorm2d(2), nn.LeakyReLU(0.3), nn.Flatten()
    ),
    "two convolutions": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 9, 1), nn.Tanh(), nn.Conv2d(9, 2, 2, 2, 1), nn.Tanh(), nn.Flatten()
    ),
    "transposed": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.ConvTranspose2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(18, 1)
    ),
}
LOSSES = {
    "softplus": lambda D, x, y: F.softplus(-D(x)).mean() + F.softplus(D(y)).mean(),
    "logits": lambda D, x, y: (
        F.binary_cross_entropy_with_logits(D(x), torch.ones_like(D(x)).detach())
        + F.binary_cross_entropy_with_logits(D(y), torch.zeros_like(D(y)).detach(), reduction="sum") * 0.5
    ),
    "hinge": lambda D, x, y: (1 - D(x)).relu().mean() + (1 + D(y)).relu().mean(),
    "squares": lambda D, x, y: ((D(x) - 1) ** 2).mean() / 2 + D(y).square().sum() / 3,
    "critic": lambda D, x, y: D(y).mean() - D(x).mean(),
    "of the sum": lambda D, x, y: (
        (D(y) - 2 * D(x)).sigmoid().mean() + (D(x).clone() - torch.add(D(y), D(x), alpha=3)).tanh().sum()
    ),
    "one element": lambda D, x, y: F.softplus(D(y)).mean().view(1),
}  # fmt: skip


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def of(loss: Tensor, params, outer):
    found = reach(loss.grad_fn, {id(t) for t in (*params, *outer)}, now() - 10**6)
    return adjoint(loss, found.nodes, found.ends, params, outer)


def both(net, loss, inner=True):
    """What the formulas find and what autograd does: the gradients, then the derivatives along random cotangents."""
    torch.manual_seed(0)
    D, x, y = net().double(), leaf(6, 4), leaf(6, 4)
    params = list(D.parameters())
    with twice_differentiable(list(D.modules())):
        value = loss(D, x, y)
    by = of(value, params, [x, y])
    assert by is not None
    right = torch.autograd.grad(value, params, create_graph=True, allow_unused=True)
    found = by.gradients()
    for a, b in zip(found, right, strict=True):
        assert b is None if a is None else torch.equal(a, b), "the gradient, bit for bit"
    bars = [None if g is None else torch.randn_like(g) for g in right]
    pairs = [(g, bar) for g, bar in zip(right, bars, strict=True) if g is not None and g.requires_grad]
    asked = [*(params if inner else []), x, y]
    outputs, cotangents = [g for g, _ in pairs], [bar for _, bar in pairs]
    second = torch.autograd.grad(outputs, asked, cotangents, allow_unused=True, retain_graph=True)
    of_params, of_outer = by.pullback(bars, inner)
    return [*of_params, *of_outer], second


@pytest.mark.parametrize("inner", [True, False], ids=["inner", "first"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("net", NETS)
def test_the_formulas_agree_with_autograd(net, loss, inner):
    if net == "linear" and loss == "critic":
        pytest.skip("its gradient has no graph")
    found, right = both(NETS[net], LOSSES[loss], inner)
    scale = max(t.abs().max() for t in right if t is not None)
    for a, b in zip(found, right, strict=True):
        a, b = (torch.zeros(()) if t is None else t for t in (a, b))
        assert (a - b).abs().max() <= 1e-11 * scale


def test_the_comparison_notices(monkeypatch):
    """Without the second derivative of softplus, say."""
    flat = One(lambda node, _: (node._saved_self, 1, 20), torch.ops.aten.softplus_backward.default)
    monkeypatch.setitem(FORMULAS, "SoftplusBackward0", flat)
    _plans.clear()
    found, right = both(NETS["relu"], LOSSES["softplus"])
    _plans.clear()
    assert max((a - b).abs().max() for a, b in zip(found, right, strict=True) if a is not None and b is not None) > 1e-3


class Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, bar):
        return 2 * bar


UNKNOWN = {
    "broadcast sum": lambda w, x: (x + w[0]).tanh().mean(),
    "product of two": lambda w, x: (x * (x @ w)).mean(),
    "a constant that widens": lambda w, x: ((x @ w)[:, :1] * torch.ones(1, 4).double()).mean(),
    "an operator without formula": lambda w, x: (x @ w).exp().mean(),
    "a function of the user's": lambda w, x: Own.apply(x @ w).mean(),
    "cubes": lambda w, x: ((x @ w) ** 3).mean(),
    "a mean in another precision": lambda w, x: (x @ w).mean(dtype=torch.float32),
    "a mean over rows": lambda w, x: (x @ w).mean(0).square().sum(),
    "weighted logits": lambda w, x: F.binary_cross_entropy_with_logits(x @ w, x.detach().sigmoid(), x.detach().exp()),
    "a factor before the product": lambda w, x: torch.addmm(x, x, w, beta=2).tanh().mean(),
    "statistics that are given": lambda w, x: F.batch_norm(
        x @ w, torch.zeros(4).double(), torch.ones(4).double()
    ).mean(),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_the_formulas_do_not_know_is_left_to_autograd(name):
    torch.manual_seed(0)
    w, x = leaf(4, 4), leaf(6, 4)
    assert of(UNKNOWN[name](w, x), [w], [x]) is None
    assert of((x @ w).tanh().mean(), [w], [x]) is not None


def test_a_tensor_that_is_written_to_is_an_error():
    w, x = leaf(4, 4), leaf(6, 4)
    labels = torch.rand(6, 4, dtype=torch.float64)
    by = of(F.binary_cross_entropy_with_logits(x @ w, labels), [w], [x])
    by.gradients()
    by.pullback([torch.ones_like(w)], True)
    labels.fill_(0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        by.pullback([torch.ones_like(w)], True)


def test_the_same_plan_serves_other_shapes():
    """A plan knows the structure of a graph alone: other batches, and other nets of the same layers."""
    _plans.clear()
    loss = LOSSES["softplus"]
    for width, rows in ((5, 6), (3, 2), (5, 1)):
        torch.manual_seed(0)
        D, x = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 1)).double(), leaf(rows, 4)
        params = list(D.parameters())
        value = loss(D, x, x)
        right = torch.autograd.grad(value, params, retain_graph=True)
        assert all(map(torch.equal, of(value, params, [x]).gradients(), right))
    assert len(_plans) == 1


def test_gradients_are_one_flat_vector():
    D, x = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 1)).double(), leaf(6, 4)
    found = of(LOSSES["softplus"](D, x, x), list(D.parameters()), [x]).gradients()
    assert isinstance(found, Joined)
    assert torch.equal(found.flat, torch.cat([g.flatten() for g in found]))
    assert found.packed(range(4)) is found.flat
    assert found.packed((1, 0, 2, 3)) is found.packed((0, 1)) is None


def test_an_unroll_without_formulas_is_the_same(monkeypatch):
    """The control of all tests that go by formulas: autograd, in the same call."""
    world = warm_world()
    value = call(world, unrolled_of(world, steps=3))
    by_formulas = gradient_of(value, world)
    asked = []
    monkeypatch.setattr(unroll, "adjoint", lambda *_: asked.append(1))
    world = warm_world()
    by_autograd = gradient_of(call(world, unrolled_of(world, steps=3)), world)
    assert len(asked) == 3
    assert reference.gap(by_formulas, by_autograd) < 1e-12


def test_labels_of_higher_precision_than_d():
    """Numpy makes labels in float64; autograd casts the gradients of a float32 D on the way, and formulas do not."""

    def gradient(dtype, **options):
        torch.manual_seed(0)
        D, real, fake = NETS["relu"](), torch.randn(6, 4), torch.randn(6, 4, requires_grad=True)
        optimizer = torch.optim.SGD(D.parameters(), 0.3, momentum=0.9)
        ones = torch.ones(6, 1, dtype=dtype)

        def d_loss(D, real, fake):
            return (D(real) - ones).square().mean() + (D(fake) + ones).square().mean()

        d_loss(D, real, fake.detach()).backward()
        optimizer.step()
        unrolled = UnrolledGeneratorLoss(D, optimizer, d_loss, lambda D, real, fake: -D(fake).mean(), **options)
        return torch.autograd.grad(unrolled(real, fake), [fake])

    exact = gradient(torch.float32)
    assert reference.gap(gradient(torch.float64), exact) < 1e-5
    assert reference.gap(gradient(torch.float64, stop_gradient=True), exact) > 1e-2
