"""Tools, settings and contexts around a call: each is that of real steps, and nothing is moved."""

import contextlib
import copy
import cProfile
import faulthandler
import gc
import pickle
import subprocess
import sys
import tracemalloc
import warnings

import pytest
import torch
from checks import assert_exact, call, expected_of, gradient_of, unrolled_of, warm_world
from problems import PROBLEMS
from reference import discriminators
from snapshot import changed, snapshot
from torch.optim.swa_utils import AveragedModel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from unroll_wrap import UnrolledGeneratorLoss, non_saturating

STEPS = 3


class Calls(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Operators(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def put(setting, value, back):
    setting(value)
    try:
        yield
    finally:
        setting(back)


@contextlib.contextmanager
def warnings_as_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@contextlib.contextmanager
def profiled_in_python():
    profile = cProfile.Profile()
    profile.enable()
    try:
        yield
    finally:
        profile.disable()


@contextlib.contextmanager
def traced():
    def trace(frame, event, arg):
        return trace

    before = sys.gettrace()
    with put(sys.settrace, trace, before):
        yield


@contextlib.contextmanager
def memory_traced():
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


@contextlib.contextmanager
def faults_dumped():
    faulthandler.dump_traceback_later(600)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def collecting():
    return put(lambda n: gc.set_threshold(*n), (50, 5, 5), gc.get_threshold())


TOOLS = {
    "anomaly detection": lambda: torch.autograd.set_detect_anomaly(True),
    "deterministic algorithms": lambda: put(torch.use_deterministic_algorithms, True, False),
    "a default device": lambda: put(torch.set_default_device, "cpu", None),
    "a device context": lambda: torch.device("cpu"),
    "a default dtype": lambda: put(torch.set_default_dtype, torch.float32, torch.get_default_dtype()),
    "a mode of functions": Calls,
    "a mode of operators": Operators,
    "backward passes in one thread": lambda: torch.autograd.set_multithreading_enabled(False),
    "forward mode without tangents": torch.autograd.forward_ad.dual_level,
    "frequent collections": collecting,
    "a trace function": traced,
    "cProfile": profiled_in_python,
    "tracemalloc": memory_traced,
    "faulthandler": faults_dumped,
    "warnings as errors": warnings_as_errors,
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("name", ["batchnorm_two_batches", "spectral_norm_new"])
def test_around_a_call(name, tool):
    world, expected = warm_world(name), expected_of(name, "adam", STEPS)
    unrolled = unrolled_of(world, steps=STEPS)
    before = snapshot(world)
    with TOOLS[tool]():
        loss = call(world, unrolled)
        assert_exact(loss, world, expected, PROBLEMS[name].gap)
    assert changed(before, snapshot(world)) == []


def copied(world, unrolled):
    return copy.deepcopy(unrolled)(*world.batch())


def averaged(world, unrolled):
    """Averages of D and of G are taken before, and are not moved."""
    averages = [AveragedModel(one) for one in (world.generator, *discriminators(world.discriminator))]
    before = [p.clone() for a in averages for p in a.parameters()]
    loss = call(world, unrolled)
    assert all(map(torch.equal, before, (p for a in averages for p in a.parameters())))
    return loss


def logged(world, unrolled):
    """As loggers of activations and gradients do (``wandb.watch``, torchinfo)."""
    seen = []
    hooked = discriminators(world.discriminator)
    handles = [m.register_forward_hook(lambda *_: seen.append("forward")) for D in hooked for m in D.modules()]
    handles += [p.register_hook(lambda g: seen.append("gradient")) for D in hooked for p in D.parameters()]
    loss = call(world, unrolled)
    for handle in handles:
        handle.remove()
    assert {"forward", "gradient"} <= set(seen)
    return loss


@pytest.mark.parametrize("way", [copied, averaged, logged])
def test_in_the_loop(way):
    """What loops do with the loss and with D in the middle of training."""
    world, expected = warm_world("batchnorm_two_batches"), expected_of("batchnorm_two_batches", "adam", STEPS)
    unrolled = unrolled_of(world, steps=STEPS)
    before = snapshot(world)
    loss = way(world, unrolled)
    if way is not logged:
        assert changed(before, snapshot(world)) == []
    assert_exact(loss, world, expected, PROBLEMS["batchnorm_two_batches"].gap)


def pair():
    torch.manual_seed(0)
    D = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
    return D, torch.nn.Linear(3, 2).double(), torch.optim.Adam(D.parameters())


def test_pickled_in_the_middle_of_training():
    """With D and the optimizer's state; the copy and the original are each exact afterwards, and apart."""
    D, G, optimizer = pair()
    real, z = torch.randn(8, 2, dtype=torch.float64), torch.randn(8, 3, dtype=torch.float64)
    for _ in range(3):
        optimizer.zero_grad()
        non_saturating.d_loss(D, real, G(z).detach()).backward()
        optimizer.step()
    unrolled = UnrolledGeneratorLoss(D, optimizer, *non_saturating, steps=STEPS)
    first = unrolled(real, G(z))
    again = pickle.loads(pickle.dumps(unrolled))
    assert torch.equal(again(real, G(z)), first) and torch.equal(unrolled(real, G(z)), first)
    again.optimizer.step()
    non_saturating.d_loss(again.discriminator, real, G(z).detach()).backward()
    again.optimizer.step()
    assert torch.equal(unrolled(real, G(z)), first) and not torch.equal(again(real, G(z)), first)


# Torch compiles scripts of its own when forward mode is used for the first time.
_SCRIPTS = pytest.mark.filterwarnings("ignore:`torch.jit.script:FutureWarning")
TRANSFORMS = {
    "grad": lambda f, z: torch.func.grad(f)(z),
    "vmap": lambda f, z: torch.func.vmap(f)(z.expand(2, *z.shape)),
    "jvp": lambda f, z: torch.func.jvp(f, (z,), (z,)),
}


@_SCRIPTS
@pytest.mark.parametrize("steps", [0, STEPS])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_are_refused(transform, steps):
    D, G, optimizer = pair()
    real, z = torch.randn(8, 2, dtype=torch.float64), torch.randn(8, 3, dtype=torch.float64)
    unrolled = UnrolledGeneratorLoss(D, optimizer, *non_saturating, steps=steps)
    with pytest.raises(RuntimeError, match=r"cannot happen inside torch\.func"):
        TRANSFORMS[transform](lambda z: unrolled(real, G(z)), z)
    made = torch.func.functional_call(G, dict(G.named_parameters()), (z,))
    assert torch.equal(unrolled(real, made), unrolled(real, G(z)))


@_SCRIPTS
def test_tangents_are_refused():
    D, G, optimizer = pair()
    real, z = torch.randn(8, 2, dtype=torch.float64), torch.randn(8, 3, dtype=torch.float64)
    unrolled = UnrolledGeneratorLoss(D, optimizer, *non_saturating, steps=STEPS)
    forward = torch.autograd.forward_ad
    with forward.dual_level():
        fake = G(forward.make_dual(z, torch.ones_like(z)))
        with pytest.raises(RuntimeError, match="has a tangent"):
            unrolled(real, fake)
        unrolled(real, forward.unpack_dual(fake).primal)


_SCRIPT = """
import torch
from unroll_wrap import UnrolledGeneratorLoss, non_saturating
torch.manual_seed(0)
D, G = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1)), torch.nn.Linear(3, 2)
unrolled = UnrolledGeneratorLoss(D, torch.optim.SGD(D.parameters(), lr=0.1), *non_saturating, steps=3)
real, z = torch.randn(8, 2), torch.randn(8, 3)
unrolled(real, G(z)).backward()
try:
    unrolled(real, G(z).detach())
except ValueError as error:
    print(G.weight.grad.tolist(), str(error)[:30], __debug__, UnrolledGeneratorLoss.__doc__ is None)
"""


def test_python_without_asserts_and_docstrings(capsys):
    """The same numbers and refusals with -OO: no check is an assert, and nothing needs a docstring."""
    done = subprocess.run([sys.executable, "-OO", "-c", _SCRIPT], capture_output=True, text=True)
    exec(compile(_SCRIPT, "script", "exec"), {})
    within = capsys.readouterr().out
    assert within.endswith("Neither loss depends on the ge True False\n")
    assert done.stdout == within.replace("True False", "False True"), done.stderr


def test_the_gradient_after_the_tools_is_still_a_gradient():
    """The control of all rows: the measure rejects K - 1 steps."""
    world, expected = warm_world("batchnorm_two_batches"), expected_of("batchnorm_two_batches", "adam", STEPS)
    loss = call(world, unrolled_of(world, steps=STEPS - 1))
    assert gradient_of(loss, world)
    with pytest.raises(AssertionError):
        assert_exact(loss, world, expected, PROBLEMS["batchnorm_two_batches"].gap)
