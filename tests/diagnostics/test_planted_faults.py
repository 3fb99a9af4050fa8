"""verify has to fail wherever a call is wrong: one fault a row, each beside the same call without it, which passes.

A fault is planted in the package itself, in what a call goes by. Whatever `verify` shared with the call would be wrong
in the same way, and the two would agree.
"""

import dataclasses
import importlib
from typing import NamedTuple

import pytest
import torch
from checks import warm_world
from snapshot import changed, snapshot

from unroll_wrap import FiniteDifference, Recompute, Truncate, UnrolledGeneratorLoss, run, verify
from unroll_wrap.backward import recompute, store, truncate
from unroll_wrap.call import optimizer
from unroll_wrap.evaluation import evaluate, swap
from unroll_wrap.optimizers import closed, read, transforms, update
from unroll_wrap.optimizers.block import each
from unroll_wrap.optimizers.rules.adam import Adam
from unroll_wrap.unrolling import result, unroll

STEPS = 3


class Fault(NamedTuple):
    """What is wrong, and for whom: a problem of the table, an optimizer, what else is done to both, options."""

    plant: object
    problem: str = "mlp"
    optimizer: str = "adam"
    prepare: object = None
    options: dict | None = None


FAULTS = {}


def fault(problem="mlp", optimizer="adam", prepare=None, **options):
    def enter(plant):
        FAULTS[plant.__name__] = Fault(plant, problem, optimizer, prepare, options)
        return plant

    return enter


def verified(row):
    world = warm_world(row.problem, row.optimizer)
    options = {"steps": STEPS, **row.options, **((row.prepare and row.prepare(world)) or {})}
    if world.resample:
        options["resample"] = lambda k: world.draw(k)
    unrolled = UnrolledGeneratorLoss(world.discriminator, world.optimizer, world.d_loss, world.g_loss, **options)
    # The first call's own proof would find some of them before.
    unrolled.prove = False
    before = snapshot(world)
    report = verify(unrolled, *world.batch(), **world.kwargs)
    assert changed(before, snapshot(world)) == []
    return report


@pytest.mark.parametrize("name", FAULTS)
def test_without_the_fault_it_passes(name):
    report = verified(FAULTS[name])
    assert report.passed, report


@pytest.mark.parametrize("name", FAULTS)
def test_it_is_caught(name, monkeypatch):
    FAULTS[name].plant(monkeypatch)
    report = verified(FAULTS[name])
    assert not report.passed, report
    # By a comparison, not because the fault made a call raise.
    assert any(problem.startswith(("The value is not", "The derivative is not")) for problem in report.problems), report


def test_there_are_enough():
    assert len(FAULTS) >= 20


# The rule


@fault()
def a_rule_off_by_one_percent(monkeypatch):
    right = Adam.descend
    monkeypatch.setattr(
        Adam, "descend", lambda self, n, p, g, *before: right(self, n, p, 1.01 * g, *before[:-1], before[-1] * 1.02)
    )


@fault()
def a_rules_derivative_off_by_one_percent(monkeypatch):
    right = Adam.ascend

    def ascend(*given):
        of_grad, *others = right(*given)
        return 1.01 * of_grad, *others

    monkeypatch.setattr(Adam, "ascend", ascend)


@fault()
def the_moments_of_adam_count_as_constant(monkeypatch):
    right = Adam.ascend

    def ascend(*given):
        of_grad, of_param, *of_state = right(*given)
        return of_grad, of_param, *map(torch.zeros_like, of_state)

    monkeypatch.setattr(Adam, "ascend", ascend)


@fault(optimizer="adam_weight_decay")
def weight_decay_ignored(monkeypatch):
    monkeypatch.setattr(Adam, "_decayed", lambda self, numbers, param, grad: (param, grad))


@fault(problem="two_groups")
def the_first_groups_options_for_all(monkeypatch):
    right, first = Adam.numbers, []

    def numbers(self, state):
        first.append(self.lr)
        return right(dataclasses.replace(self, lr=first[0]), state)

    monkeypatch.setattr(Adam, "numbers", numbers)


@fault()
def the_state_starts_from_nothing(monkeypatch):
    monkeypatch.setattr(read, "state_of", lambda optimizer, rule, param, counts: rule.init(param))


# The user's own


def halving(world):
    world.discriminator[0].weight.register_hook(lambda g: 0.5 * g)


@fault(prepare=halving)
def a_hook_is_lost(monkeypatch):
    monkeypatch.setattr(evaluate, "gradient_hooks", lambda p: [])


class Slower:
    """A wrapper with a step of its own, which goes half of the way."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self):
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        before = [p.detach().clone() for p in params]
        self.optimizer.step()
        with torch.no_grad():
            for p, b in zip(params, before, strict=True):
                p.lerp_(b, 0.5)


def slower(world):
    world.optimizer = Slower(world.optimizer)


@fault(prepare=slower)
def a_wrapper_is_ignored(monkeypatch):
    monkeypatch.setattr(optimizer, "_unwrapped", lambda given, _: [getattr(given, "optimizer", given)])


@fault(
    prepare=lambda world: {"grad_transform": lambda grads: [0.1 * g / (1 + g.norm()) for g in grads]}, optimizer="sgd"
)
def a_gradient_transform_is_ignored(monkeypatch):
    monkeypatch.setattr(transforms.Transforms, "of_gradients", lambda self, grads, params: list(grads))


@fault(prepare=lambda world: {"param_transform": lambda p: p.clamp(-0.4, 0.4)})
def a_clip_of_weights_is_ignored(monkeypatch):
    monkeypatch.setattr(transforms.Transforms, "of_parameter", lambda self, i, params: params[i])


class Counting(torch.nn.Sequential):
    """Its forward pass goes by a count of its own."""

    n = 0.0

    def forward(self, x):
        self.n = self.n + 0.1
        return super().forward(x) * (1 + self.n)


def counting(world):
    D = Counting(*world.discriminator)
    world.discriminator = D
    D.n = 0.0


@fault(prepare=counting)
def an_attribute_is_dropped(monkeypatch):
    right = swap.Swap.put

    def put(self, *given):
        for module in self.modules:
            if isinstance(module, Counting):
                module.n = 0.0
        return right(self, *given)

    monkeypatch.setattr(swap.Swap, "put", put)


@fault()
def a_parameter_is_left_out(monkeypatch):
    right = optimizer.Steppers.owned
    monkeypatch.setattr(optimizer.Steppers, "owned", lambda *given: right(*given)[1:])


@fault(problem="frozen_from_the_start")
def what_is_frozen_moves(monkeypatch):
    right = optimizer.Steppers.owned

    def owned(self, *given):
        frozen, self.frozen = self.frozen, []
        try:
            return right(self, *given)
        finally:
            self.frozen = frozen

    monkeypatch.setattr(optimizer.Steppers, "owned", owned)


@fault(problem="batchnorm_read_in_eval")
def buffers_are_not_carried(monkeypatch):
    monkeypatch.setattr(swap.Swap, "buffers", lambda self: self.originals())


# The steps


@fault()
def the_first_parameters_in_every_step(monkeypatch):
    right, first = unroll.Unroll.evaluate_d, []

    def evaluate_d(self, point, k, batch, params=None, walk=True):
        first.append(point.params())
        return right(self, point, k, batch, first[0] if params is None else params, walk)

    monkeypatch.setattr(unroll.Unroll, "evaluate_d", evaluate_d)


@fault()
def the_first_parameters_for_the_generators_loss(monkeypatch):
    right, of_d, first = unroll.Unroll.generator_term, unroll.Unroll.evaluate_d, []

    def evaluate_d(self, point, *given, **options):
        first.append(point)
        return of_d(self, point, *given, **options)

    monkeypatch.setattr(unroll.Unroll, "evaluate_d", evaluate_d)
    monkeypatch.setattr(unroll.Unroll, "generator_term", lambda self, point, weight: right(self, first[0], weight))


@fault(backward=Recompute())
def the_first_parameters_in_what_is_computed_again(monkeypatch):
    right, points = recompute._Segments._replay, []

    def replay(self, point, recorded):
        points.append(self._segments[0][0] if self._segments else point)
        right(self, points[0], recorded)

    monkeypatch.setattr(recompute, "same", lambda *given, **options: torch.tensor(True))
    monkeypatch.setattr(recompute._Segments, "_replay", replay)


@fault()
def a_cotangent_halved(monkeypatch):
    right = unroll.Unroll.pullback

    def pullback(self, step, cotangent, first):
        return right(self, step, [each(b, lambda t: t / 2) for b in cotangent], first)

    monkeypatch.setattr(unroll.Unroll, "pullback", pullback)


@fault()
def the_cotangent_of_the_parameters_is_dropped(monkeypatch):
    monkeypatch.setattr(update, "add_gradients", lambda blocks, grads: list(blocks))


@fault()
def the_second_term_is_left_out(monkeypatch):
    monkeypatch.setattr(store._Stack, "pullback", lambda *given: None)


@fault()
def the_first_term_is_left_out(monkeypatch):
    right = unroll.Unroll.generator_term

    def generator_term(self, point, weight):
        add = self.sensitivity.add
        self.sensitivity.add = lambda users, grads: False
        try:
            return right(self, point, weight)
        finally:
            self.sensitivity.add = add

    monkeypatch.setattr(unroll.Unroll, "generator_term", generator_term)


@fault()
def the_gradient_of_fake_off_by_one_percent(monkeypatch):
    right = result.hand_over

    def hand_over(value, sensitivity):
        sensitivity._sums = {i: (t, 1.01 * g) for i, (t, g) in sensitivity._sums.items()}
        return right(value, sensitivity)

    monkeypatch.setattr(run, "hand_over", hand_over)


@fault(average=True)
def the_mean_over_one_step_less(monkeypatch):
    right = unroll.Unroll.generator_term

    def generator_term(self, point, weight):
        return right(self, point, weight * STEPS / (STEPS + 1))

    monkeypatch.setattr(unroll.Unroll, "generator_term", generator_term)


@fault(prepare=lambda world: {"resample": world.draw})
def the_first_batch_in_every_step(monkeypatch):
    right, first = unroll.Unroll.draw, []

    def draw(self, point, k):
        point, k, batch = right(self, point, k)
        first.append(batch)
        return point, k, first[0]

    monkeypatch.setattr(unroll.Unroll, "draw", draw)


@fault(backward=Truncate(1))
def one_step_too_many_is_differentiated(monkeypatch):
    right = truncate.Truncate.tape
    monkeypatch.setattr(truncate.Truncate, "tape", lambda self, u, first, steps: right(Truncate(2), u, first, steps))


@fault(backward=FiniteDifference())
def a_quotient_off_by_a_tenth(monkeypatch):
    right = unroll.Sensitivity.add

    def add(self, users, grads):
        return right(self, users, [None if g is None else 1.1 * g for g in grads])

    monkeypatch.setattr(unroll.Sensitivity, "add", add)


# What stands in for something


@fault()
def a_stand_in_for_the_batch_is_off(monkeypatch):
    right = evaluate.cut

    def cut(batch, *given):
        return right(tuple(1.001 * x for x in batch), *given)._replace(originals=[t for t in batch if t.requires_grad])

    monkeypatch.setattr(evaluate, "cut", cut)


@fault(problem="batchnorm_one_batch")
def an_operator_off_by_one_percent(monkeypatch):
    operators = importlib.import_module("unroll_wrap.operators.batch_norm")
    right = operators._BatchNormBackward.backward

    def backward(*given):
        of_y, *others = right(*given)
        return 1.01 * of_y, *others

    monkeypatch.setattr(operators._BatchNormBackward, "backward", staticmethod(backward))


@fault()
def the_closed_form_forgets_its_sign(monkeypatch):
    monkeypatch.setattr(closed, "plus_scaled", lambda one, other, factor: one - factor * other)
    monkeypatch.setattr("unroll_wrap.optimizers.rules.adam.plus_scaled", closed.plus_scaled)
