"""Every class of torch_optimizer: exact by a rule, exact by tracing its own step(), or refused."""

import contextlib

import optimizer_table
import pytest
import reference
import torch
import torch_optimizer as extra
from checks import GRADIENT, assert_value, call, gradient_of, oracle
from problems import World, double, points, small_generator
from torch import nn
from torch_optimizer_rows import FACTORIES, REFUSED, VERDICTS
from torch_table import GAP, steepness, wrapped

# torch_optimizer calls torch in forms that torch would like to see no more.
pytestmark = pytest.mark.filterwarnings("ignore:This overload of")

STEPS = 2
WORKING = [name for name, verdict in VERDICTS.items() if verdict != REFUSED]
# Their own step() rounds to float32, and differences of a rounded function are noise.
ROUNDING = ("NovoGrad", "RAdam", "Ranger", "RangerVA")


def tiny(factory, precision=contextlib.nullcontext):
    """Two matrices and a vector: a trace costs by the number of tensors."""
    torch.manual_seed(0)
    G, D = small_generator(), double(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1, bias=False)))
    world = World(D, factory(D.parameters()), G, points(G))
    with precision():
        return world.warm()


@contextlib.contextmanager
def without_rounding():
    """The same optimizers with float64 wherever they say float32: in `.float()`, and in `torch.zeros([])`."""
    cast = torch.Tensor.float
    torch.Tensor.float = lambda self: self
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.Tensor.float = cast
        torch.set_default_dtype(torch.float32)


def test_no_class_is_left_out():
    """A class that the package adds shows here."""
    names = {name.split("-")[0] for name in FACTORIES}
    assert names == {one.split(".")[1] for one in optimizer_table.classes(extra)}


@pytest.mark.parametrize("name", list(VERDICTS))
def test_the_verdict_is_the_expected_one(name):
    """The table in the docs, class by class."""
    kind = getattr(extra, name.split("-")[0])
    assert optimizer_table.row(f"torch_optimizer.{name}", kind).verdict == VERDICTS[name]


@pytest.mark.parametrize("name", WORKING)
def test_a_class_is_exact(name):
    """Value to 1e-12 of its own steps, slope to 1e-7, and the first term alone is neither."""
    precision = without_rounding if name in ROUNDING else contextlib.nullcontext
    world = tiny(FACTORIES[name], precision)
    with precision():
        way, slope = steepness(world, STEPS)
        loss = call(world, wrapped(world, steps=STEPS))
        assert_value(loss, oracle(reference.value, world, steps=STEPS))
        gradient = gradient_of(loss, world)
        control = oracle(reference.first_term, world, steps=STEPS)
    error = abs(reference.along(gradient, way) - slope) / abs(slope)
    assert error <= GRADIENT, f"gradient is off by {error:.1e} relative"
    assert abs(reference.along(control, way) - slope) / abs(slope) > GAP


@pytest.mark.parametrize("name", ROUNDING)
def test_a_class_that_rounds_is_exact_in_its_own_precision(name):
    """The value of its rounded steps to 1e-12, and the gradient without rounding as far as float32 goes."""
    world = tiny(FACTORIES[name])
    loss = call(world, wrapped(world, steps=STEPS))
    assert_value(loss, oracle(reference.value, world, steps=STEPS))
    smooth = tiny(FACTORIES[name], without_rounding)
    with without_rounding():
        expected = gradient_of(call(smooth, wrapped(smooth, steps=STEPS)), smooth)
    assert 0 < reference.gap(gradient_of(loss, world), expected) < 1e-4


def test_adahessian_is_refused():
    """It says why, and what to do."""
    world = tiny(torch.optim.Adam)
    world.optimizer = FACTORIES["Adahessian"](world.discriminator.parameters())
    with pytest.raises(TypeError, match=r"Adahessian cannot be unrolled: .* graph.*Adam"):
        wrapped(world)
