"""The objectives on logits: equal to the textbook, stable, and unrolled exactly."""

import pytest
import torch
from checks import GRADIENT, assert_exact_in, expect, unrolled_of, warm_world

import unroll_wrap

NAMES = ["minimax", "non_saturating", "hinge", "wasserstein", "least_squares", "relativistic"]


def log_sigmoid(x):
    """log of a probability, said with the probability; for moderate logits."""
    return torch.log(1 / (1 + torch.exp(-x)))


def f(real, fake):
    """The paper's f: E[log D(x)] + E[log(1 - D(G(z)))]."""
    return log_sigmoid(real).mean() + log_sigmoid(-fake).mean()


TEXTBOOK = {
    "minimax": (lambda r, x: -f(r, x), lambda r, x: f(r, x)),
    "non_saturating": (lambda r, x: -f(r, x), lambda r, x: -log_sigmoid(x).mean()),
    "hinge": (lambda r, x: (1 - r).clamp(min=0).mean() + (1 + x).clamp(min=0).mean(), lambda r, x: -x.mean()),
    "wasserstein": (lambda r, x: x.mean() - r.mean(), lambda r, x: -x.mean()),
    "least_squares": (
        lambda r, x: 0.5 * ((r - 1) ** 2).mean() + 0.5 * (x**2).mean(),
        lambda r, x: 0.5 * ((x - 1) ** 2).mean(),
    ),
    "relativistic": (lambda r, x: -log_sigmoid(r - x).mean(), lambda r, x: -log_sigmoid(x - r).mean()),
}


def logits(seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(2, 7, 1, generator=generator, dtype=torch.float64)


def evaluate(loss, real, fake):
    """An objective, on given logits: D is the identity."""
    return loss(lambda x: x, real, fake)


def objective(name):
    return getattr(unroll_wrap, name)


@pytest.mark.parametrize("name", list(TEXTBOOK))
def test_objectives_are_the_textbooks(name):
    """Both members of the pair equal the formula written with probabilities."""
    for scale in (0.3, 3.0):
        real, fake = logits(scale=scale)
        for mine, theirs in zip(objective(name), TEXTBOOK[name], strict=True):
            assert evaluate(mine, real, fake).item() == pytest.approx(theirs(real, fake).item(), rel=1e-12)


def test_relativistic_sees_differences_only():
    """Adding a constant to every logit changes nothing, and a better D has a smaller d_loss and a larger g_loss."""
    d, g = unroll_wrap.relativistic
    real, fake = logits()
    for loss in (d, g):
        assert evaluate(loss, real + 3, fake + 3).item() == pytest.approx(evaluate(loss, real, fake).item(), rel=1e-12)
        assert evaluate(loss, real, fake + 3).item() != pytest.approx(evaluate(loss, real, fake).item(), rel=1e-3)
    assert evaluate(d, real + 1, fake) < evaluate(d, real, fake) < evaluate(d, real - 1, fake)
    assert evaluate(g, real + 1, fake) > evaluate(g, real, fake) > evaluate(g, real - 1, fake)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1e2, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_objectives_are_stable_on_large_logits(name, size, dtype):
    """Confident logits of either sign give finite values and gradients; the probability formula does not."""
    for sign in (1, -1):
        real = torch.full((3, 1), sign * size, dtype=dtype, requires_grad=True)
        fake = torch.full((3, 1), -sign * size, dtype=dtype, requires_grad=True)
        for loss in objective(name):
            value = evaluate(loss, real, fake)
            assert value.dtype == dtype and value.shape == () and torch.isfinite(value)
            grads = torch.autograd.grad(value, [real, fake], allow_unused=True)
            assert all(torch.isfinite(g).all() for g in grads if g is not None)
    assert not torch.isfinite(f(torch.tensor(-1e4), torch.tensor(1e4)))


@pytest.mark.parametrize("name", NAMES)
def test_objectives_are_pairs_that_unpack(name):
    """NamedTuple(d_loss, g_loss), so that *hinge goes into the constructor."""
    pair = objective(name)
    assert pair._fields == ("d_loss", "g_loss") and tuple(pair) == (pair.d_loss, pair.g_loss)
    world = warm_world()
    unrolled = unroll_wrap.UnrolledGeneratorLoss(world.discriminator, world.optimizer, *pair, steps=2)
    named = unroll_wrap.UnrolledGeneratorLoss(
        world.discriminator, world.optimizer, d_loss=pair.d_loss, g_loss=pair.g_loss, steps=2
    )
    assert unrolled(*world.batch()).item() == named(*world.batch()).item()


def test_minimax_is_the_default():
    """The paper's f, with its real term."""
    world = warm_world()
    bare = unroll_wrap.UnrolledGeneratorLoss(world.discriminator, world.optimizer)
    full = unroll_wrap.UnrolledGeneratorLoss(world.discriminator, world.optimizer, *unroll_wrap.minimax, steps=5)
    other = unroll_wrap.UnrolledGeneratorLoss(world.discriminator, world.optimizer, *unroll_wrap.hinge, steps=5)
    assert bare(*world.batch()).item() == full(*world.batch()).item() != other(*world.batch()).item()


@pytest.mark.parametrize(("problem", "steps"), [("mlp", 1), ("mlp", 3), ("batchnorm_two_batches", 2)])
@pytest.mark.parametrize("name", NAMES)
def test_objectives_are_unrolled_exactly(problem, name, steps):
    """Value and gradient of every objective from a warm Adam, by arguments and by closures."""
    world = warm_world(problem)
    world.d_loss, world.g_loss = objective(name)
    expected = expect(world, steps=steps)
    # Differences of logits react little to one step: the smallest gap of the table.
    gap = 5e-3 if name == "relativistic" else 1e-2
    assert_exact_in(("argument", "closure"), world, unrolled_of(world, steps=steps), expected, gap)


def test_the_real_term_of_minimax_reaches_the_generator():
    """f's real term depends on the generator through theta^K: leaving it out changes the gradient."""
    world = warm_world()
    world.d_loss, world.g_loss = unroll_wrap.minimax
    full = expect(world, steps=3)
    world.g_loss = lambda D, real, fake: log_sigmoid(-D(fake)).mean()
    without = expect(world, steps=3)
    difference = max(abs(a - b) for a, b in zip(full.slopes, without.slopes, strict=True))
    assert difference > 1e4 * GRADIENT
