"""What "exact" means here: value to 1e-12, gradient to 1e-7, and the gradient without the second term is neither."""

from functools import lru_cache, wraps
from typing import NamedTuple

import reference
import torch
from optimizers import OPTIMIZERS
from problems import PROBLEMS

from unroll_wrap import UnrolledGeneratorLoss

VALUE, GRADIENT = 1e-12, 1e-7
MODES = ("argument", "closure", "rerun")


def warm_world(name="mlp", optimizer="adam"):
    """A problem after its warm-up, always the same, with the random stream where it is left."""
    torch.manual_seed(0)
    return PROBLEMS[name].build(OPTIMIZERS[optimizer]).warm()


def oracle(function, world, **options):
    """`reference.value` or `first_term` on a world, its batches made afresh."""
    steps = options.pop("steps")
    options = {"resample": world.batches(steps), "kwargs": world.kwargs, "frozen": world.frozen, **options}
    optimizer = options.pop("optimizer", world.optimizer)
    extra = (world.inputs,) if function is reference.first_term else ()
    return function(world.discriminator, optimizer, world.d_loss, world.g_loss, world.batch(), steps, *extra, **options)


class Expected(NamedTuple):
    """What the oracle says; slopes along directions, or the whole gradient where differences do not apply."""

    value: torch.Tensor
    directions: list
    slopes: list
    gradient: list | None
    control: list


def slopes(function, inputs, directions):
    """Central differences, whose own error bound has to be well below the tolerance."""
    found = [reference.central_difference(function, inputs, one) for one in directions]
    size = sum(one.slope**2 for one in found) ** 0.5
    worst = max(one.error for one in found)
    assert worst < 0.1 * GRADIENT * size, f"the oracle is unsure: {worst:.1e} of {size:.1e}"
    return [one.slope for one in found]


def expect(world, *, whole=False, **options) -> Expected:
    """Ask the oracle by differences. `options` as for `reference.value`, `steps` among them."""
    ways = reference.axes(world.inputs) if whole else reference.directions(world.inputs, 2)
    control = {key: option for key, option in options.items() if key != "average"}
    return Expected(
        oracle(reference.value, world, **options),
        ways,
        slopes(lambda: oracle(reference.value, world, **options), world.inputs, ways),
        None,
        oracle(reference.first_term, world, **control),
    )


def computed_once(function):
    """What `function` returns, remembered; the random stream is left alone, whether it is computed or remembered.

    Otherwise the draws of a test would be those of the test that happens to come first.
    """

    @lru_cache
    @wraps(function)
    def computed(*arguments):
        with torch.random.fork_rng(devices=[]):
            return function(*arguments)

    return computed


@computed_once
def expected_of(name, optimizer, steps) -> Expected:
    """The oracle's word on a row of the tables: by differences, or by one long graph (see `problems.py`)."""
    world = warm_world(name, optimizer)
    world.before_call()
    if not PROBLEMS[name].chain:
        return expect(world, steps=steps)
    given = world.discriminator, world.optimizer, world.d_loss, world.g_loss, world.batch(), steps
    gradient = reference.filled(reference.chained(*given), world.inputs)
    return Expected(
        oracle(reference.value, world, steps=steps), [], [], gradient, oracle(reference.first_term, world, steps=steps)
    )


def unrolled_of(world, **options):
    """The wrapper over a world, then whatever the user's loop does before the generator's step."""
    options.setdefault("resample", (lambda k: world.draw(k)) if world.resample else None)
    unrolled = UnrolledGeneratorLoss(world.discriminator, world.optimizer, world.d_loss, world.g_loss, **options)
    world.before_call()
    return unrolled


def call(world, unrolled, mode="argument", **options):
    """One call as a user writes it: batch as arguments, losses as closures over it, or G run again inside them."""
    if mode == "argument":
        return unrolled(*world.batch(), **world.kwargs, **options)
    batch = world.batch()

    def bind(loss):
        if mode == "closure":
            return lambda D: loss(D, *batch, **world.kwargs)
        return lambda D: loss(D, *world.batch(), **world.kwargs)

    return unrolled(d_loss=bind(world.d_loss), g_loss=bind(world.g_loss), **options)


def gradient_of(loss, world):
    return list(torch.autograd.grad(loss, world.inputs, retain_graph=True))


def assert_value(loss, expected):
    assert loss.shape == () and loss.dtype == torch.float64
    error = abs(loss.item() - expected.item()) / max(abs(expected.item()), 1e-3)
    assert error <= VALUE, f"value {loss.item()!r}, real steps give {expected.item()!r}: {error:.1e} relative"


def distance(gradient, expected: Expected) -> float:
    """The relative distance of a gradient from the oracle's."""
    if expected.gradient is not None:
        return reference.gap(gradient, expected.gradient)
    claimed = [reference.along(gradient, way) for way in expected.directions]
    top = sum((a - b) ** 2 for a, b in zip(claimed, expected.slopes, strict=True)) ** 0.5
    return top / sum(b**2 for b in expected.slopes) ** 0.5


def assert_exact_in(modes, world, unrolled, expected: Expected, gap=1e-2, **options):
    """Every way to write the call is exact, one after the other on the same objects and random numbers."""
    state = torch.get_rng_state()
    for mode in modes:
        torch.set_rng_state(state)
        loss = call(world, unrolled, mode, **options)
        try:
            assert_exact(loss, world, expected, gap)
        except AssertionError as error:
            raise AssertionError(f"{mode}: {error}") from error


def assert_exact(loss, world, expected: Expected, gap=1e-2):
    """Value and gradient are the oracle's, and the gradient without the second term is told apart."""
    assert_value(loss, expected.value)
    gradient = gradient_of(loss, world)
    assert all(torch.isfinite(g).all() for g in gradient)
    error = distance(gradient, expected)
    assert error <= GRADIENT, f"gradient is off by {error:.1e} relative"
    # Controls: the same measure must reject the first term alone.
    assert distance(expected.control, expected) > gap
    assert reference.gap(expected.control, gradient) > gap
