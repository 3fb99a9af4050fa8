"""Random users against the oracle: 200 here, `make fuzz` for 5,000 (--hypothesis-profile=long: 500 for each seed)."""

from collections import Counter

import pytest
import reference
import torch
from checks import call, oracle
from fuzzed import cases, to_single
from hypothesis import HealthCheck, given, settings

from unroll_wrap import FiniteDifference

KINDS = ["store", "recompute", "truncate", "difference"]
# Value and gradient, relative. Where a gradient is rounding alone, Adam makes whole steps of it: 6e-11 in a value.
BOUNDS = {"exact": (1e-9, 1e-6), "difference": (1e-9, 1e-4), "single": (1e-4, 2e-2)}


def expected(world, case, first=0.004):
    """Value and a slope along a random direction; the steps that count as constant take the fake as it is now."""
    fixed = reference.detached(world.batches(case.steps) or [world.batch()] * case.steps)
    constant = case.constant()

    def batches(steps):
        live = [world.draw(k) for k in range(steps)] if world.resample else [world.batch()] * steps
        return [*fixed[:constant], *live[constant:]]

    def value():
        return oracle(reference.value, world, **case.oracle_options(), resample=batches(case.steps))

    way = reference.directions(world.inputs, 1, seed=case.seed)[0]
    return value(), way, reference.central_difference(value, world.inputs, way, first=first, rows=3)


def check(case, seen):
    """One user's call is the oracle's value and slope; nothing of D moves."""
    world = case.world()
    unrolled, state = case.unrolled(world), torch.get_rng_state()
    value, way, difference = expected(world, case)
    if not value.abs() < 1e15:
        seen["diverged"] += 1  # the user's D explodes, which a call refuses: see test_bad_input.py
        return
    bounds = BOUNDS["difference" if isinstance(case.backward, FiniteDifference) else "exact"]
    if case.single and not case.random:
        to_single(world, case.optimizer)
        unrolled, bounds = case.unrolled(world), BOUNDS["single"]
        seen["single"] += 1
    before = [t.clone() for t in world.discriminator.state_dict().values()]
    torch.set_rng_state(state)
    loss = call(world, unrolled, case.mode)
    gradient = [g.double() for g in reference.filled(loss, world.inputs)]
    assert all(map(torch.equal, before, world.discriminator.state_dict().values()))
    size = float(sum(g.square().sum() for g in gradient)) ** 0.5
    assert abs(loss.item() - value.item()) <= bounds[0] * max(1.0, abs(value.item())), (loss, value)
    if not difference.error <= 0.01 * bounds[1] * size + 1e-9:
        seen["unsure"] += 1  # a kink between, or chaos: the differences themselves say so
        return
    error = abs(reference.along(gradient, way) - difference.slope)
    if error > bounds[1] * size + 1e-8 and not isinstance(case.backward, FiniteDifference):
        # A bend narrower than the shifts: shorter ones tell, to what rounding leaves of them.
        again = case.world()
        case.unrolled(again)
        _, _, difference = expected(again, case, first=1e-7)
        error = abs(reference.along(gradient, way) - difference.slope)
        assert difference.error <= bounds[1] * size, (
            f"{difference} by shorter shifts, of a gradient of length {size:.1e}"
        )
        seen["narrow"] += 1
    if error > bounds[1] * size + 1e-8 and isinstance(case.backward, FiniteDifference):
        # On a strongly curved loss the quotient is further off. Then its error falls with eps by the order it promises.
        errors = []
        for eps in (4e-4, 2e-4):
            unrolled.backward = FiniteDifference(eps, central=True)
            torch.set_rng_state(state)
            shorter = [g.double() for g in reference.filled(call(world, unrolled, case.mode), world.inputs)]
            errors.append(abs(reference.along(shorter, way) - difference.slope))
        assert errors[1] < errors[0] / 3, f"{errors} off by two lengths of the shift"
        assert errors[1] <= bounds[1] * size + 1e-8, f"{errors[1]:.1e} off, of a gradient of length {size:.1e}"
        seen["truncated"] += 1
        unrolled.backward = case.backward
    else:
        assert error <= bounds[1] * size + 1e-8, f"{error:.1e} off, of a gradient of length {size:.1e}"
    # The control: how often the first term alone would not have passed.
    unrolled.stop_gradient = True
    torch.set_rng_state(state)
    first = [g.double() for g in reference.filled(call(world, unrolled, case.mode), world.inputs)]
    seen["told apart"] += abs(reference.along(first, way) - difference.slope) > bounds[1] * size + 1e-8


# Of an optimizer that has not stepped it is told, which is right, and no defect of the gradient.
@pytest.mark.filterwarnings("ignore::unroll_wrap.FreshState", "ignore::unroll_wrap.EvalMode")
@pytest.mark.parametrize("kind", KINDS)
def test_random_users(kind, pytestconfig):
    """A quarter of the examples for each way back; in a good part of them the second term shows."""
    seen, failed = Counter(), []
    # By name: torch.testing loads a profile of its own when another test imports it.
    profile = settings.get_profile(pytestconfig.getoption("hypothesis_profile") or "default")

    @settings(profile, max_examples=profile.max_examples // len(KINDS), suppress_health_check=list(HealthCheck))
    @given(cases(kind))
    def one(case):
        seen["examples"] += 1
        try:
            check(case, seen)
        except (AssertionError, RuntimeError, ValueError) as error:
            # Of a few examples the first that fails is made small; of many, all are told.
            if profile.max_examples <= 200:
                raise
            failed.append(case)
            print(f"{case}\n    {str(error)[:300]}", flush=True)

    one()
    print(kind, dict(seen), len(failed), "failed", flush=True)
    assert not failed
    assert seen["told apart"] > 0.3 * seen["examples"]
    assert seen["unsure"] < 0.2 * seen["examples"]
    assert seen["narrow"] < 0.02 * seen["examples"]
    assert seen["truncated"] < 0.05 * seen["examples"]


def test_the_long_profile_draws_by_its_seed():
    """It would take the examples of the default profile for every seed if it were derandomized too."""
    assert settings.get_profile("default").derandomize
    assert not settings.get_profile("long").derandomize
