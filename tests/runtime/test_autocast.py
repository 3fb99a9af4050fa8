"""Lower precision: value and gradient under autocast are those of the same losses in a loop, wherever it is entered."""

import contextlib

import pytest
import reference
import torch
from checks import MODES, call, gradient_of, oracle, unrolled_of
from optimizers import OPTIMIZERS
from problems import World, non_saturating_d, non_saturating_g
from torch import nn

from unroll_wrap import Recompute, Store
from unroll_wrap.evaluation.autocast import Autocast
from unroll_wrap.evaluation.gradients import Factor, differentiate
from unroll_wrap.proof.real_rounds import real_steps

STEPS = 3
DTYPES = [torch.bfloat16, torch.float16]
# The oracle's graph and the unroll's take the same operations in the same precision. The unroll's float16 keeps small
# numbers that the oracle's rounds: half an ulp is what that can change.
VALUE, GRADIENT = 1e-6, {torch.bfloat16: 1e-6, torch.float16: 2.0**-11}


def single_world(optimizer="adam", **losses):
    """Points in float32, from a wider D."""
    torch.manual_seed(0)
    G = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
    D = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))
    noises, reals = torch.randn(40, 32, 2), torch.randn(40, 32, 2) * 0.5 + 1
    world = World(D, OPTIMIZERS[optimizer](D.parameters()), G, lambda i: (reals[i].clone(), G(noises[i])), **losses)
    return world.warm()


def cast(loss, dtype):
    """The same loss, which enters autocast itself."""

    def within(*args):
        with torch.autocast("cpu", dtype=dtype, cache_enabled=False):
            return loss(*args)

    return within


def long_graph(world, dtype):
    """The oracle: real steps for the value; one long graph, differentiated outside autocast, for the gradient."""
    losses = cast(world.d_loss, dtype), cast(world.g_loss, dtype)
    given = world.discriminator, world.optimizer, *losses, world.batch(), STEPS
    gradient = reference.filled(reference.chained(*given), world.inputs)
    twin = World(world.discriminator, world.optimizer, world.generator, world.draw, *losses)
    return oracle(reference.value, twin, steps=STEPS), gradient, oracle(reference.first_term, twin, steps=STEPS)


@pytest.mark.parametrize("where", ["around", "inside"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_autocast_is_exact(dtype, where):
    """The value of real steps under autocast, and their total derivative; not float32's value, not the first term."""
    world = single_world()
    value, gradient, first = long_graph(world, dtype)
    assert abs(value - oracle(reference.value, world, steps=STEPS)) > 1e-4
    batch = world.batch()
    world.draw = lambda i: batch  # the generator runs in float32, so that the unroll alone is compared
    around = contextlib.nullcontext()
    if where == "around":
        around = torch.autocast("cpu", dtype=dtype)
    else:
        world.d_loss, world.g_loss = cast(world.d_loss, dtype), cast(world.g_loss, dtype)
    for mode in MODES:
        with around:
            loss = call(world, unrolled_of(world, steps=STEPS), mode)
        assert abs(loss.item() - value.item()) <= VALUE * abs(value.item())
        assert reference.gap(gradient_of(loss, world), gradient) < GRADIENT[dtype]
        assert reference.gap(first, gradient) > 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_convolutions_and_batchnorm_under_autocast(dtype):
    """Operators that are written anew for their second derivative keep to the precision that they are run in."""
    torch.manual_seed(0)
    G = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Unflatten(1, (1, 4, 4)))
    D = nn.Sequential(
        nn.Conv2d(1, 4, 4, 2, 1), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 4, 2, 2), nn.Flatten(), nn.Linear(4, 1)
    )
    noises, reals = torch.randn(40, 16, 2), torch.randn(40, 16, 1, 4, 4)
    world = World(D, OPTIMIZERS["sgd"](D.parameters()), G, lambda i: (reals[i].clone(), G(noises[i]))).warm()
    value, gradient, first = long_graph(world, dtype)
    batch = world.batch()
    with torch.autocast("cpu", dtype=dtype):
        loss = unrolled_of(world, steps=STEPS)(*batch)
    # Two roundings apart: the oracle differentiates torch's own operators, which round elsewhere.
    rounding = torch.finfo(dtype).eps
    assert abs(loss.item() - value.item()) <= rounding * abs(value.item())
    assert reference.gap(gradient_of(loss, world), gradient) < 2 * rounding
    assert reference.gap(first, gradient) > 0.1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backward", [Store(), Recompute()])
def test_float16_with_a_grad_scaler(mode, backward, monkeypatch):
    """Losses so small that float16 has no gradient of theirs, as the scaler expects them: nothing is lost inside."""
    small = 2.0**-20
    world = single_world(
        "sgd",
        d_loss=lambda D, *batch: small * non_saturating_d(lambda x: D(x).float(), *batch),
        g_loss=lambda D, *batch: small * non_saturating_g(lambda x: D(x).float(), *batch),
    )
    world.optimizer.param_groups[0]["lr"] /= small
    world.warm()
    exact = gradient_of(call(world, unrolled_of(world, steps=STEPS)), world)
    assert reference.gap(oracle(reference.first_term, world, steps=STEPS), exact) > 0.1
    unrolled = unrolled_of(world, steps=STEPS, backward=backward)

    def scaled():
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
        with torch.autocast("cpu", dtype=torch.float16):
            loss = call(world, unrolled, mode)
        world.generator.zero_grad()
        scaler.scale(loss).backward()
        return [p.grad / scaler.get_scale() for p in world.inputs]

    assert reference.gap(scaled(), exact) < 0.02
    if mode == "argument":
        monkeypatch.setattr(Factor, "differentiate", lambda self, *args, **options: differentiate(*args, **options))
        assert reference.gap(scaled(), exact) > 0.3  # the control: without a factor


def test_a_factor_that_overflows_is_lowered():
    """Gradients near the largest number of float16: finite and right, with a smaller factor."""
    world = single_world("sgd", g_loss=lambda D, real, fake: 2.0**12 * non_saturating_g(D, real, fake))
    exact = gradient_of(call(world, unrolled_of(world, steps=STEPS)), world)
    batch = world.batch()
    with torch.autocast("cpu", dtype=torch.float16):
        loss = unrolled_of(world, steps=STEPS)(*batch)
    gradient = gradient_of(loss, world)
    assert all(torch.isfinite(g).all() for g in gradient)
    assert reference.gap(gradient, exact) < 0.02


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_runs_under_autocast(dtype):
    """The losses and what makes their batches, without its cache; not the optimizer's part. Then it is as before."""
    world, seen = single_world(), {}

    def state(name, result):
        seen.setdefault(name, set()).add((torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()))
        return result

    def d_loss(D, real, fake):
        on_real = D(real)
        assert on_real.dtype is dtype
        return state("d_loss", non_saturating_d(D, real, fake))

    unrolled = unrolled_of(
        world,
        steps=STEPS,
        resample=lambda k: state("resample", world.draw(k)),
        grad_transform=lambda grads: state("grad_transform", grads),
        param_transform=lambda p: state("param_transform", p),
    )
    with torch.autocast("cpu", dtype=dtype):
        unrolled(*world.batch(), d_loss=d_loss, g_loss=lambda *args: state("g_loss", non_saturating_g(*args)))
        assert torch.is_autocast_enabled("cpu") and torch.is_autocast_cache_enabled()
        assert torch.get_autocast_dtype("cpu") is dtype
    assert seen == {
        "d_loss": {(True, False)},
        "g_loss": {(True, False)},
        "resample": {(True, False)},
        "grad_transform": {(False, True)},
        "param_transform": {(False, True)},
    }


def test_no_steps_under_autocast_are_the_users_own_loss_bit_for_bit():
    """steps=0 adds nothing to the caller's autocast."""
    world = single_world()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        batch = world.batch()
        plain, loss = world.g_loss(world.discriminator, *batch), unrolled_of(world, steps=0)(*batch)
        assert plain.dtype is loss.dtype and plain.item() == loss.item()
        a, b = gradient_of(plain, world), gradient_of(loss, world)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_real_steps_under_autocast_use_the_weights_of_each_step(dtype):
    """Autocast keeps 16-bit copies of weights within its context, which a real step makes stale."""
    world = single_world()
    value, _, _ = long_graph(world, dtype)
    batch = world.batch()
    # A doubt, so that the first call is compared with real steps.
    world.discriminator[0].weight.factor = 1.0  # type: ignore[assignment]
    unrolled = unrolled_of(world, steps=STEPS)
    with torch.autocast("cpu", dtype=dtype):
        taken = real_steps(unrolled, world.d_loss, world.g_loss, batch, [batch] * STEPS, {}).run()
        found = unrolled(*batch).item()
    assert abs(taken - value.item()) <= VALUE * abs(value.item())
    assert abs(found - value.item()) <= VALUE * abs(value.item())
    # The control: the copies of the first step would give another value.
    with torch.autocast("cpu", dtype=dtype):
        stale = oracle(reference.value, world, steps=STEPS).item()
    assert abs(stale - value.item()) > 1e-5 * abs(value.item())


def test_without_autocast_there_is_nothing_to_enter():
    """Nothing is paid for it per evaluation."""
    assert isinstance(Autocast([torch.zeros(1)]).inside(), contextlib.nullcontext)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_fake_of_16_bits_gets_its_gradient_summed_in_32(dtype):
    """A G that ends in half precision, D in float32: a scaler's factor neither overflows nor is rounded away."""
    world = single_world()
    real, fake = world.batch()
    narrow = fake.to(dtype)

    def gradient(backward):
        world.generator.zero_grad()
        backward(unrolled_of(world, steps=STEPS)(real, narrow, d_loss=d_loss, g_loss=g_loss))
        return [p.grad.clone() for p in world.inputs]

    def d_loss(D, real, fake):
        return non_saturating_d(D, real, fake.float())

    def g_loss(D, real, fake):
        return non_saturating_g(D, real, fake.float())

    one = gradient(lambda loss: loss.backward(retain_graph=True))
    many = gradient(lambda loss: (loss * 2.0**16).backward(retain_graph=True))
    assert all(torch.isfinite(g).all() for g in many)
    assert reference.gap([g / 2.0**16 for g in many], one) < 2 * torch.finfo(dtype).eps
