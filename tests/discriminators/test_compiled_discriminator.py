"""A compiled D runs eagerly inside an unroll: exact, one notice, nothing compiled again."""

import logging

import pytest
import torch
from checks import MODES, assert_exact, assert_exact_in, call, expected_of, gradient_of, unrolled_of, warm_world
from snapshot import changed, snapshot
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

from unroll_wrap import FiniteDifference, UnrolledGeneratorLoss
from unroll_wrap.evaluation.runtime import _noticed

STEPS = 3
# Dynamo looks at .grad of whatever it is given.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


class Backend:
    """Counts what it compiles and how often that runs; autograd is made ahead of time, as by Inductor."""

    def __init__(self):
        self.compiled = self.runs = 0
        self.through = aot_autograd(
            fw_compiler=self.compile, bw_compiler=lambda graph, _: make_boxed_func(graph.forward)
        )

    def __call__(self, graph, inputs):
        return self.through(graph, inputs)

    def compile(self, graph, inputs):
        self.compiled += 1

        def run(*args):
            self.runs += 1
            return graph(*args)

        return make_boxed_func(run)


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def whole(world, backend):
    """D = torch.compile(D)"""
    world.discriminator = torch.compile(world.discriminator, backend=backend)


def in_its_place(world, backend):
    """D.compile()"""
    world.discriminator.compile(backend=backend)


def forward_alone(world, backend):
    """D.forward = torch.compile(D.forward)"""
    world.discriminator.forward = torch.compile(world.discriminator.forward, backend=backend)


def loss_function(world, backend):
    """d_loss = torch.compile(d_loss)"""
    world.d_loss = torch.compile(world.d_loss, backend=backend)


OLD = torch.__version__ < "2.7"
NOTHING_COMPILED = pytest.mark.skipif(OLD, reason="torch 2.6 compiles nothing here, with or without an unroll")


@pytest.mark.parametrize(
    "way", [whole, pytest.param(in_its_place, marks=NOTHING_COMPILED), forward_alone, loss_function]
)
def test_a_compiled_discriminator_is_exact(way, caplog):
    """Every way to compile it; one notice over two calls; the compiled code is not touched, and runs again after."""
    expected, world, backend = expected_of("mlp", "adam", STEPS), warm_world(), Backend()
    eager = world.discriminator
    way(world, backend)
    value = world.d_loss(world.discriminator, *world.batch())  # as in the step of D before
    value.backward()
    eager.zero_grad()
    assert backend.compiled > 0
    before = backend.compiled, backend.runs
    with caplog.at_level(logging.INFO, "unroll_wrap"):
        assert_exact_in(MODES, world, unrolled_of(world, steps=STEPS), expected)
    assert sum("compiled" in record.message for record in caplog.records) == 1
    assert (backend.compiled, backend.runs) == before
    again = world.d_loss(world.discriminator, *world.batch())
    again.backward()
    assert again.item() == value.item()
    assert backend.compiled == before[0] and backend.runs > before[1]


def test_compiled_code_has_no_second_derivative():
    """The control: what an unroll would meet otherwise is an error, or a gradient that is not there."""
    world = warm_world()
    whole(world, Backend())
    D, (real, fake) = world.discriminator, world.batch()
    grads = torch.autograd.grad(world.d_loss(D, real, fake), list(D.parameters()), create_graph=True)
    try:
        (found,) = torch.autograd.grad(sum(g.sum() for g in grads), [fake], allow_unused=True)
    except RuntimeError as error:
        assert "double backward" in str(error)
    else:
        assert found is None


def test_a_compiled_function_inside_the_forward_pass():
    """Compiled code that no module shows is run eagerly as well."""
    expected, world, backend = expected_of("mlp", "adam", STEPS), warm_world(), Backend()
    body = torch.compile(world.discriminator.forward, backend=backend)

    def through(loss):
        return lambda D, *batch: loss(body, *batch)

    world.d_loss, world.g_loss = through(world.d_loss), through(world.g_loss)
    assert_exact_in(MODES, world, unrolled_of(world, steps=STEPS), expected)
    assert backend.compiled == 0


def test_no_steps_compile_nothing():
    """steps=0 runs eagerly too, since its stand-ins would be compiled for."""
    world, backend = warm_world(), Backend()
    expected = world.g_loss(world.discriminator, *world.batch()).item()
    whole(world, backend)
    assert call(world, unrolled_of(world, steps=0)).item() == expected
    assert backend.compiled == 0


def test_the_users_own_stance_is_put_back():
    """Also when a loss raises."""
    world, backend = warm_world(), Backend()
    whole(world, backend)

    def raising(*_):
        raise ValueError("here")

    with torch.compiler.set_stance("fail_on_recompile"):
        call(world, unrolled_of(world, steps=STEPS))
        with pytest.raises(ValueError, match="here"):
            call(world, unrolled_of(world, steps=STEPS), g_loss=raising)
        with pytest.raises(RuntimeError, match="compile"):
            world.discriminator(world.batch()[0])
    world.discriminator(world.batch()[0])
    assert backend.runs == 1


def test_finite_differences_use_the_compiled_code():
    """They need no second derivative. The snapshot sees that nothing else changes; the notice is not theirs."""
    world, backend = warm_world(), Backend()
    exact = gradient_of(call(world, unrolled_of(world, steps=STEPS)), world)
    plain = unrolled_of(world, steps=STEPS, backward=FiniteDifference(central=True))
    eager = gradient_of(call(world, plain), world)
    compiled = torch.compile(world.discriminator, backend=backend)
    before = snapshot(world)
    unrolled = UnrolledGeneratorLoss(
        compiled, world.optimizer, world.d_loss, world.g_loss, steps=STEPS, backward=FiniteDifference(central=True)
    )
    found = gradient_of(unrolled(*world.batch()), world)
    assert backend.runs > 0 or OLD  # there it is run as it is
    assert changed(before, snapshot(world)) == []
    for a, b, c in zip(found, eager, exact, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-8)
        assert torch.allclose(a, c, rtol=1e-4, atol=1e-8)
    assert compiled not in _noticed


def test_a_compiled_training_step():
    """The user compiles what is around the call: that is compiled, and the call is not."""
    expected, world, backend = expected_of("mlp", "adam", STEPS), warm_world(), Backend()
    unrolled, (real, _) = unrolled_of(world, steps=STEPS), world.batch()
    noise = world.batch

    @torch.compile(backend=backend)
    def step(real):
        return unrolled(real * 1.0, noise()[1]) * 2.0

    assert_exact(step(real) / 2, world, expected)
    assert backend.compiled > 0
