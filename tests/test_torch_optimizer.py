"""Every class of torch_optimizer: exact by a rule, exact by tracing its own step(), or refused."""

import contextlib
from functools import partial

import optimizer_table
import pytest
import reference
import torch
import torch_optimizer as extra
from checks import GRADIENT, assert_value, call, gradient_of, oracle
from problems import World, double, points, small_generator
from test_every_optimizer import GAP, steepness, wrapped
from torch import nn

# torch_optimizer calls torch in forms that torch would like to see no more.
pytestmark = pytest.mark.filterwarnings("ignore:This overload of")

STEPS = 2
RULE, TRACED, REFUSED = "exact rule", "traced", "refused"

# Learning rates that let two steps show.
FACTORIES = {
    "A2GradExp": partial(extra.A2GradExp, beta=0.1, lips=2.0),
    "A2GradInc": partial(extra.A2GradInc, beta=0.1, lips=2.0),
    "A2GradUni": partial(extra.A2GradUni, beta=0.1, lips=2.0),
    "AccSGD": partial(extra.AccSGD, lr=0.1),
    "AdaBelief": partial(extra.AdaBelief, lr=0.01),
    "AdaBound": partial(extra.AdaBound, lr=0.01),
    "AdaMod": partial(extra.AdaMod, lr=0.01),
    "Adafactor": partial(extra.Adafactor),
    "Adahessian": partial(extra.Adahessian),
    "AdamP": partial(extra.AdamP, lr=0.01, weight_decay=0.01),
    "AggMo": partial(extra.AggMo, lr=0.05),
    "Apollo": partial(extra.Apollo, lr=0.01),
    "DiffGrad": partial(extra.DiffGrad, lr=0.01),
    "LARS": partial(extra.LARS, lr=1.0, momentum=0.5, weight_decay=0.01),
    "Lamb": partial(extra.Lamb, lr=0.01),
    "MADGRAD": partial(extra.MADGRAD, lr=0.05),
    "NovoGrad": partial(extra.NovoGrad, lr=0.01),
    "PID": partial(extra.PID, lr=0.05, momentum=0.5),
    "QHAdam": partial(extra.QHAdam, lr=0.01, nus=(0.7, 0.9)),
    "QHM": partial(extra.QHM, lr=0.1, momentum=0.5),
    "RAdam": partial(extra.RAdam, lr=0.01),
    "Ranger": partial(extra.Ranger, lr=0.01),
    "RangerQH": partial(extra.RangerQH, lr=0.01),
    "RangerVA": partial(extra.RangerVA, lr=0.01),
    "SGDP": partial(extra.SGDP, lr=0.1, momentum=0.5, weight_decay=0.01),
    "SGDW": partial(extra.SGDW, lr=0.1, momentum=0.5, weight_decay=0.01),
    "SWATS": partial(extra.SWATS, lr=0.01),
    "Shampoo": partial(extra.Shampoo, lr=0.1, momentum=0.5),
    "Yogi": partial(extra.Yogi, lr=0.01),
    # One look back in every two steps.
    "Lookahead-SGD": lambda params: extra.Lookahead(torch.optim.SGD(params, lr=0.1, momentum=0.5), k=2),
    "Lookahead-Adam": lambda params: extra.Lookahead(torch.optim.Adam(params, lr=0.01, foreach=False), k=2),
    "Lookahead-Yogi": lambda params: extra.Lookahead(extra.Yogi(params, lr=0.01), k=2),
}
VERDICTS = dict.fromkeys(FACTORIES, TRACED) | {
    "A2GradExp": RULE,
    "A2GradInc": RULE,
    "A2GradUni": RULE,
    "Adahessian": REFUSED,
}
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
