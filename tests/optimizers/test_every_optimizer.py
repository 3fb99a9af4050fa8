"""Every configuration that torch tests its own optimizers with: K real steps' value, and its derivative."""

import pytest
import reference
import torch
from checks import GRADIENT, VALUE, assert_value, call, computed_once, gradient_of, oracle
from torch import nn
from torch_table import (
    GAP,
    NO_SECOND_TERM,
    REFUSED,
    STAIRCASE,
    STEPS,
    configurations,
    steepness,
    unaccepted,
    world_of,
    wrapped,
)

TABLE = configurations()
UNROLLED = [one for one in TABLE if one.kind.__name__ not in REFUSED]
SMOOTH = [one for one in UNROLLED if one.kind.__name__ not in STAIRCASE]


def names(rows):
    return [one.name for one in rows]


@computed_once
def shared_steepness(name):
    """Loop, foreach and fused are one function up to rounding and have one derivative, but for ASGD.

    Its step sizes live in float32, and the foreach form computes them in that precision.
    """
    kind, place, form = name.split("-")
    form = form if kind == "ASGD" else "loop"
    return steepness(world_of(next(one for one in TABLE if one.name == f"{kind}-{place}-{form}")))


@pytest.mark.skipif(not torch.__version__.startswith("2.14"), reason="the table is another one in every torch")
def test_the_table_is_the_one_that_was_counted():
    """183 configurations, and 2 that give a tensor learning rate to a foreach form; 11 of optimizers that are refused.

    A change in torch's table has to be looked at.
    """
    assert unaccepted() == []
    assert len(TABLE) - len(UNROLLED) == 11
    tensor_lr = [
        one for one in UNROLLED if isinstance(one.options.get("lr"), torch.Tensor) and one.options.get("foreach")
    ]
    assert (len(UNROLLED), len(tensor_lr)) == (185, 2)
    shipped = {
        name
        for name, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
    }
    assert shipped == {one.kind.__name__ for one in TABLE}


@pytest.mark.parametrize("row", SMOOTH, ids=names(SMOOTH))
def test_a_configuration_is_exact(row):
    """Value to 1e-12 and slope to 1e-7, from the warm state; the first term alone is neither."""
    way, slope = shared_steepness(row.name)
    world = world_of(row)
    loss = call(world, wrapped(world))
    assert_value(loss, oracle(reference.value, world, steps=STEPS))
    gradient = gradient_of(loss, world)
    assert all(torch.isfinite(g).all() for g in gradient)
    error = abs(reference.along(gradient, way) - slope) / abs(slope)
    assert error <= GRADIENT, f"gradient is off by {error:.1e} relative"
    control = oracle(reference.first_term, world, steps=STEPS)
    apart = abs(reference.along(control, way) - slope) / abs(slope)
    if row.kind.__name__ in NO_SECOND_TERM:
        # Rprop goes by the sign of the gradient: D's reaction does not change with the generator, almost everywhere.
        assert apart <= GRADIENT and reference.gap(control, gradient) <= VALUE
    else:
        assert apart > GAP


REFUSED_ROWS = [one for one in TABLE if one.kind.__name__ in REFUSED]


@pytest.mark.parametrize("row", REFUSED_ROWS, ids=names(REFUSED_ROWS))
def test_a_refused_configuration_says_why(row):
    """Before anything runs, with the reason and a way out."""
    world = world_of(row, warm=False)
    with pytest.raises(TypeError, match=rf"{row.kind.__name__} cannot be unrolled: it .*Adam"):
        wrapped(world)


def newton_schulz(matrix, coefficients, steps, eps):
    """x ← a x + (b x xᵀ + c (x xᵀ)²) x from x / ‖x‖, in the precision of the argument."""
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.t() if tall else matrix
    x = x / max(torch.sqrt((x * x).sum()), torch.tensor(eps, dtype=x.dtype))
    for _ in range(steps):
        square = torch.einsum("ij,kj->ik", x, x)
        x = a * x + torch.einsum("ij,jk->ik", b * square + c * torch.einsum("ij,jk->ik", square, square), x)
    return x.t() if tall else x


def muon_step(group, param, grad, buffer):
    """Muon without rounding, from its definition."""
    rows, columns = param.shape
    scale = {
        None: max(1.0, rows / columns) ** 0.5,
        "original": max(1.0, rows / columns) ** 0.5,
        "match_rms_adamw": 0.2 * max(rows, columns) ** 0.5,
        "spectral_unclamped": (rows / columns) ** 0.5,
    }[group["adjust_lr_fn"]]
    mu = group["momentum"]
    buffer = mu * buffer + (1 - mu) * grad
    direction = mu * buffer + (1 - mu) * grad if group["nesterov"] else buffer
    direction = newton_schulz(direction, group["ns_coefficients"], group["ns_steps"], group["eps"])
    lr = float(group["lr"])
    return param - lr * group["weight_decay"] * param - lr * scale * direction, buffer


def muon_loss(world, steps):
    """One long graph through Muon without rounding, brought back to torch's own parameters after every step."""
    twins = reference.copies(world.discriminator, world.optimizer)
    (optimizer,) = twins.optimizers
    (group,) = optimizer.param_groups
    named = dict(twins.discriminator.named_parameters())
    params = {name: p.detach().clone().requires_grad_() for name, p in named.items()}
    buffers = {name: optimizer.state[p]["momentum_buffer"].clone() for name, p in named.items()}
    bound = reference.Bound(twins.discriminator)
    for _ in range(steps):
        bound.params = params
        loss = world.d_loss(bound, *world.batch())
        grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
        reference.real_step(twins, world.d_loss, world.batch(), {})
        params = dict(params)
        for (name, p), grad in zip(named.items(), grads, strict=True):
            smooth, buffers[name] = muon_step(group, params[name], grad, buffers[name])
            params[name] = smooth + (p.detach() - smooth).detach()
    bound.params = params
    return world.g_loss(bound, *world.batch())


MUON = [one for one in UNROLLED if one.kind.__name__ in STAIRCASE]


@pytest.mark.parametrize("row", MUON, ids=names(MUON))
def test_muon_is_the_staircase_with_the_slope_of_the_iteration(row):
    """Value to 1e-12 of torch's own bfloat16 steps; the gradient is that of the iteration without rounding.

    A staircase has no derivative for differences to find: the oracle is one long graph, written from the definition.
    """
    world = world_of(row, biases=False)
    loss = call(world, wrapped(world))
    assert_value(loss, oracle(reference.value, world, steps=STEPS))
    expected = muon_loss(world, STEPS)
    assert_value(expected.detach(), oracle(reference.value, world, steps=STEPS))
    exact = reference.filled(expected, world.inputs)
    # No differences, so their noise does not set the tolerance; nor does the control have to be far away.
    assert reference.gap(gradient_of(loss, world), exact) <= 1e-10
    assert reference.gap(oracle(reference.first_term, world, steps=STEPS), exact) > 1e-5


def test_the_long_graph_of_muon_is_right_where_differences_can_see_it():
    """The control of the oracle: its iteration has the slope that differences find."""
    generator = torch.Generator().manual_seed(0)
    matrix, way = torch.randn(2, 4, 2, generator=generator, dtype=torch.float64)
    options = (3.4445, -4.7750, 2.0315), 5, 1e-7
    weight = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    leaf = matrix.clone().requires_grad_()
    (grad,) = torch.autograd.grad((weight * newton_schulz(leaf, *options)).sum(), leaf)
    found = reference.central_difference(lambda: (weight * newton_schulz(matrix, *options)).sum(), [matrix], [way])
    assert abs(found.slope - (grad * way).sum()) < GRADIENT * abs(found.slope)


# One configuration of each class; fused and foreach go through the same rule.
CLASSES = [
    next(one for one in SMOOTH if one.kind.__name__ == name) for name in dict.fromkeys(c.kind.__name__ for c in SMOOTH)
]


class Corners(nn.Module):
    """Dead units (g = 0, v = 0 in every step), a parameter at exactly zero, and a head that d_loss may leave out."""

    def __init__(self):
        super().__init__()
        self.hidden, self.head, self.other = nn.Linear(2, 4), nn.Linear(4, 1), nn.Linear(4, 1)
        self.scale = nn.Parameter(torch.zeros(1))
        with torch.no_grad():
            self.hidden.bias[:2] = 4.0
            self.hidden.bias[2:] = -10.0
            self.hidden.weight[3:] = 0.0

    def features(self, x):
        return torch.relu(self.hidden(x))

    def forward(self, x):
        return self.head(self.features(x)) + self.scale


def corners(row, *, warm):
    torch.manual_seed(0)
    world = world_of(row, warm=False)
    D = Corners().to(torch.float64)
    world.discriminator, world.optimizer = D, row(D.parameters())
    plain = world.d_loss

    def d_loss(D, real, fake):
        loss = plain(D, real, fake)
        # The second head has a gradient in some steps and none in others.
        return loss + D.other(D.features(fake)).pow(2).mean() if D.hidden.training and real[0, 0] > 1.0 else loss

    def g_loss(D, real, fake):
        return nn.functional.softplus(-D(fake)).mean() + D.other(D.features(fake)).mean()

    world.d_loss, world.g_loss, world.resample = d_loss, g_loss, True
    return world.warm() if warm else world


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "fresh"])
@pytest.mark.parametrize("row", CLASSES, ids=names(CLASSES))
def test_nothing_is_nan_in_the_corners(row, warm):
    """v = 0, g = 0, a parameter at zero, a step without a gradient: the real value, and a gradient that is finite."""
    world = corners(row, warm=warm)
    loss = call(world, wrapped(world, resample=world.draw))
    assert_value(loss, oracle(reference.value, world, steps=STEPS))
    gradient = gradient_of(loss, world)
    assert all(torch.isfinite(g).all() for g in gradient)
    assert any(g.abs().max() > 0 for g in gradient)


def test_the_corners_are_met():
    """The control: those parameters, gradients and moments are what the test above says."""
    world = corners(CLASSES[names(CLASSES).index("Adam-0-loop")], warm=True)
    D, state = world.discriminator, world.optimizer.state
    assert (state[D.hidden.bias]["exp_avg_sq"][2:] == 0).all()
    assert (D.hidden.weight[3:] == 0).all()
    with_head = {bool(world.draw(k)[0][0, 0] > 1.0) for k in range(STEPS)}
    assert with_head == {True, False}
    assert 0 < state[D.other.weight]["step"] < state[D.head.weight]["step"]
    assert corners(CLASSES[0], warm=False).discriminator.scale == 0
