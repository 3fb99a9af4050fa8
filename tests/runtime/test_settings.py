"""Torch's settings and modes around a call: what is chosen inside, and that it is put back."""

import contextlib
from functools import partial

import pytest
import reference
import torch
import torch.utils.checkpoint
from checks import (
    MODES,
    assert_exact,
    assert_exact_in,
    assert_value,
    call,
    expected_of,
    oracle,
    unrolled_of,
    warm_world,
)
from snapshot import changed, snapshot
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unroll_wrap import FiniteDifference, Recompute, Store, Truncate, UnrolledGeneratorLoss, verify

STEPS = 3
CUDA = torch.backends.cuda
KERNELS = {"flash": CUDA.flash_sdp_enabled, "memory": CUDA.mem_efficient_sdp_enabled, "math": CUDA.math_sdp_enabled}


class Stopped(Exception):
    """Raised in the middle."""


def kernels():
    return {name for name, enabled in KERNELS.items() if enabled()}


def watched(world, look, **options):
    """What `look` sees in the losses, each value once."""
    seen = []

    def watch(loss):
        def within(*args):
            seen.append(look())
            return loss(*args)

        return within

    unrolled = unrolled_of(world, steps=STEPS, **options)
    call(world, unrolled, d_loss=watch(world.d_loss), g_loss=watch(world.g_loss))
    assert len(seen) >= STEPS + 1
    return set(map(frozenset, seen)) if isinstance(seen[0], set) else set(seen)


@pytest.mark.parametrize("users", [[SDPBackend.FLASH_ATTENTION], [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]])
def test_attention_by_the_math_kernel_whatever_the_user_chose(users):
    """Exact under any choice of the user's, and the choice is put back, also when a loss raises."""
    expected, world = expected_of("attention", "adam", STEPS), warm_world("attention")

    def raising(*_):
        raise Stopped

    with sdpa_kernel(users):
        before = kernels()
        assert_exact_in(MODES, world, unrolled_of(world, steps=STEPS), expected)
        assert kernels() == before
        with pytest.raises(Stopped):
            call(world, unrolled_of(world, steps=STEPS), g_loss=raising)
        assert kernels() == before


def test_the_fused_kernel_has_no_second_derivative():
    """The control, and the message for a D that insists on it."""
    world = warm_world("attention")
    d_loss = world.d_loss

    def insisting(D, real, fake):
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return d_loss(D, real, fake)

    before = snapshot(world)
    with pytest.raises(RuntimeError, match=r"second derivative.*FiniteDifference.*stop_gradient"):
        call(world, unrolled_of(world, steps=STEPS), d_loss=insisting)
    assert changed(before, snapshot(world)) == []
    call(world, unrolled_of(world, steps=STEPS, stop_gradient=True), d_loss=insisting)
    call(world, unrolled_of(world, steps=STEPS, backward=FiniteDifference()), d_loss=insisting)


@pytest.mark.parametrize(
    ("options", "math_alone"),
    [
        ({"backward": Store()}, True),
        ({"backward": Recompute()}, True),
        ({"backward": Truncate(2)}, True),
        ({"backward": FiniteDifference()}, False),
        ({"backward": Truncate(2, FiniteDifference())}, False),
        ({"stop_gradient": True}, False),
    ],
)
def test_the_users_kernel_where_one_derivative_is_enough(options, math_alone):
    """The math kernel only for gradients that are differentiated again."""
    expected = frozenset({"math"} if math_alone else KERNELS)
    assert watched(warm_world(), kernels, **options) == {expected}


@pytest.mark.parametrize(("name", "enabled"), [("lstm", False), ("gru", False), ("mlp", True)])
def test_cudnn_is_left_where_there_is_an_rnn(name, enabled):
    """Its RNNs have no second derivative. Nothing else of cuDNN's settings changes, and it is put back."""

    def flags():
        return torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic

    with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=True):
        assert watched(warm_world(name), flags) == {(enabled, True, True)}
        assert flags() == (True, True, True)


def test_cached_parametrizations_are_not_those_of_another_step():
    """parametrize.cached() around a call, filled by a real pass before: exact, and filled as before afterwards."""
    expected, world = expected_of("weight_norm_new", "adam", STEPS), warm_world("weight_norm_new")
    D = world.discriminator
    for mode in MODES:
        with parametrize.cached():
            weight = D[0].weight
            loss = call(world, unrolled_of(world, steps=STEPS), mode)
            assert D[0].weight is weight
        assert D[0].weight is not weight  # the control: it was cached
        assert_exact(loss, world, expected)


@pytest.mark.parametrize("steps", [0, 1, STEPS])
def test_inference_mode_is_refused(steps):
    """Before anything happens, with what to do instead."""
    world = warm_world()
    unrolled, batch = unrolled_of(world, steps=steps), world.batch()
    before = snapshot(world)
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"inference_mode.*no_grad"):
        unrolled(*batch)
    assert changed(before, snapshot(world)) == []
    unrolled(*batch)


def test_a_batch_made_in_inference_mode():
    """Torch's own error, as in training D on it; a fake from there is the error for one without a graph."""
    world = warm_world()
    with torch.inference_mode():
        real, fake = (x * 1 for x in world.batch())
    unrolled = unrolled_of(world, steps=STEPS)
    before = snapshot(world)
    with pytest.raises(RuntimeError, match="Inference tensors .* make a clone"):
        unrolled(real, world.batch()[1])
    with pytest.raises(ValueError, match="detach|no_grad"):
        unrolled(world.batch()[0], fake.clone())
    assert changed(before, snapshot(world)) == []


@pytest.mark.parametrize("name", ["mlp", "batchnorm_two_batches", "spectral_norm_new"])
def test_no_grad_gives_the_plain_value(name):
    """The same value, without graph."""
    expected, world = expected_of(name, "adam", STEPS), warm_world(name)
    state = torch.get_rng_state()
    for mode in MODES:
        torch.set_rng_state(state)
        with torch.no_grad():
            loss = call(world, unrolled_of(world, steps=STEPS), mode)
        assert not loss.requires_grad
        assert_value(loss, expected.value)


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("optimizer", ["adam", "sgd_momentum", "adam_all"])
@pytest.mark.parametrize(
    "around",
    [partial(default_dtype, torch.float64), partial(default_dtype, torch.float16), partial(torch.device, "meta")],
    ids=["float64", "float16", "meta"],
)
def test_default_dtype_and_device_do_not_matter(around, optimizer):
    """What the package makes has the dtype and device of what it is made for."""
    expected, world = expected_of("mlp", optimizer, STEPS), warm_world("mlp", optimizer)
    unrolled = unrolled_of(world, steps=STEPS)
    for mode in ("argument", "closure"):
        batch = world.batch()
        world.draw, draw = (lambda i, batch=batch: batch), world.draw
        with around():
            loss = call(world, unrolled, mode)
        world.draw = draw
        assert_exact(loss, world, expected)


def test_a_lazy_discriminator_before_its_first_batch():
    """Named, with what to do; after a first pass it is like any other (see the row `lazy_materialised`)."""
    D = nn.Sequential(nn.LazyLinear(5), nn.LazyBatchNorm1d(), nn.LazyLinear(1))
    with pytest.raises(ValueError, match=r"LazyLinear.*lazy.*Run the discriminator once"):
        UnrolledGeneratorLoss(D, lambda params: torch.optim.Adam(params), steps=1)
    D(torch.randn(3, 2))
    UnrolledGeneratorLoss(D, lambda params: torch.optim.Adam(params), steps=1)


# float32 rounds at 6e-8; the four losses and three updates here add up some twenty of those.
SINGLE_VALUE, SINGLE_GRADIENT = 2e-6, 1e-4


def test_discriminators_of_different_dtypes():
    """One in float64, one in float32, one optimizer: exact as far as float32 goes."""
    world = warm_world("two_discriminators_one_optimizer")
    _, b = world.discriminator
    exact_value = oracle(reference.value, world, steps=STEPS)
    exact = list(torch.autograd.grad(call(world, unrolled_of(world, steps=STEPS)), world.inputs))

    class Narrow(nn.Module):
        def __init__(self, inside):
            super().__init__()
            self.inside = inside.float()

        def forward(self, x):
            return self.inside(x.float()).double()

    for state in (world.optimizer.state[p] for p in b.parameters()):
        state["exp_avg"], state["exp_avg_sq"] = state["exp_avg"].float(), state["exp_avg_sq"].float()
    world.discriminator = [world.discriminator[0], Narrow(b)]
    assert {p.dtype for D in world.discriminator for p in D.parameters()} == {torch.float32, torch.float64}
    value, first = oracle(reference.value, world, steps=STEPS), oracle(reference.first_term, world, steps=STEPS)
    for mode in MODES:
        loss = call(world, unrolled_of(world, steps=STEPS), mode)
        assert abs(loss - value) < SINGLE_VALUE * abs(value)
        assert abs(loss - exact_value) < SINGLE_VALUE * abs(value)
        gradient = list(torch.autograd.grad(loss, world.inputs))
        assert reference.gap(gradient, exact) < SINGLE_GRADIENT
        assert reference.gap(first, gradient) > 1e-2


def test_no_setting_is_left_behind():
    """After calls of all kinds every setting is the default again."""
    for name in ("attention", "lstm", "checkpointed", "spectral_norm_new"):
        world = warm_world(name)
        call(world, unrolled_of(world, steps=1)).backward()
    assert kernels() == set(KERNELS)
    assert torch.backends.cudnn.enabled
    assert torch.utils.checkpoint._CheckpointFrame.__module__ == "torch.utils.checkpoint"


class NoDouble(TorchDispatchMode):
    """A device such as Apple's GPUs, which refuse float64."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if any(isinstance(t, torch.Tensor) and t.dtype == torch.float64 for t in tree_leaves(out)):
            raise TypeError(f"no float64 here: {func}")
        return out


OPTIONS = [{}, {"stop_gradient": True}, {"backward": Recompute()}, {"backward": FiniteDifference()}, {"average": True}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_device_without_float64(options):
    """Nothing is computed in a precision that the user has not chosen; verify included."""
    world = warm_world()
    world.discriminator.float()
    world.optimizer.load_state_dict(world.optimizer.state_dict())
    real, fake = (x.detach().float() for x in world.batch())
    fake.requires_grad_()
    unrolled = unrolled_of(world, steps=STEPS, **options)
    expected = unrolled(real, fake).item()
    with NoDouble():
        loss = unrolled(real, fake)
        loss.backward()
        assert loss.item() == expected
        assert verify(unrolled, real, fake).passed
    with NoDouble(), pytest.raises(TypeError, match="no float64"):
        real.double()
