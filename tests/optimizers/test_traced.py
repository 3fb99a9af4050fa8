"""An optimizer that no rule is known for: its own step(), traced."""

import logging

import pytest
import reference
import torch
from checks import assert_exact, assert_value, call, expect, oracle, unrolled_of, warm_world
from problems import PROBLEMS
from snapshot import changed, snapshot
from torch import nn
from torch_table import world_of, wrapped

from unroll_wrap.optimizers.read import rule_of
from unroll_wrap.optimizers.rules.adam import Adam as AdamRule
from unroll_wrap.optimizers.traced.recording import Recorder

STEPS = 2


class Heavy(torch.optim.Optimizer):
    """A user's own: momentum on a normalised gradient, in place and through .data, with a count in Python."""

    def __init__(self, params, lr=0.1, momentum=0.8, decay=0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state, grad = self.state[p], p.grad.data
                if not state:
                    state["step"], state["buffer"] = 0, torch.zeros_like(p.data)
                state["step"] += 1
                if group["decay"]:
                    grad.add_(p.data, alpha=group["decay"])
                state["buffer"].mul_(group["momentum"]).add_(grad / (1 + grad.norm()))
                p.data.add_(state["buffer"], alpha=-group["lr"] / (1 + 0.01 * state["step"]))


class Clipped(torch.optim.Optimizer):
    """Decides by the data: a step along the unit gradient where the gradient is long. No count, so one key."""

    def __init__(self, params, lr=0.4, limit=100.0):
        super().__init__(params, {"lr": lr, "limit": limit})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            total = torch.stack([p.grad.norm() for p in group["params"]]).norm()
            for p in group["params"]:
                if total > group["limit"]:
                    p.sub_(group["lr"] * p.grad * (group["limit"] / total))
                else:
                    p.sub_(group["lr"] * p.grad)


class Reading(torch.optim.Optimizer):
    """Computes with a number read out of a tensor."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad, alpha=group["lr"] / (1 + p.grad.norm().item()))


class Holding(Heavy):
    """Keeps the module it steps, and asks it for parameters."""

    def __init__(self, params, model):
        super().__init__(params)
        self.model = model

    def step(self, closure=None):
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        super().step()


class OtherAdam(torch.optim.Adam):
    """Overrides step()."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["lr"] * torch.tanh(3 * p.grad))


class NamedAdam(torch.optim.Adam):
    """Overrides everything but step()."""

    def __init__(self, params):
        super().__init__(params, lr=0.02, betas=(0.5, 0.9))
        self.label = "mine"

    def zero_grad(self, set_to_none=True):
        super().zero_grad(set_to_none)


@pytest.fixture
def traces(monkeypatch):
    """Every trace that is made, in order."""
    made, record = [], Recorder.record

    def counted(*arguments):
        made.append(arguments)
        return record(*arguments)

    monkeypatch.setattr(Recorder, "record", counted)
    return made


def test_a_users_own_optimizer_is_exact_and_left_alone():
    """In-place, .data, a norm, a count; nothing of the live optimizer, D or G changes."""
    world = world_of(Heavy)
    expected = expect(world, steps=STEPS)
    unrolled = wrapped(world, steps=STEPS)
    before = snapshot(world)
    loss = call(world, unrolled)
    assert changed(before, snapshot(world)) == []
    assert_exact(loss, world, expected)


def test_a_live_optimizer_that_has_not_stepped_yet():
    """The state that the first step makes is a part of the trace; the live one stays empty."""
    world = world_of(Heavy, warm=False)
    assert_exact(call(world, wrapped(world, steps=STEPS)), world, expect(world, steps=STEPS), gap=1e-3)
    assert len(world.optimizer.state) == 0


def test_a_subclass_with_its_own_step_is_traced():
    """Not taken for Adam."""
    world = world_of(lambda params: OtherAdam(params, lr=0.05))
    assert rule_of(world.optimizer) is None
    as_adam = oracle(reference.value, world, steps=STEPS, optimizer=lambda params: torch.optim.Adam(params, lr=0.05))
    expected = expect(world, steps=STEPS)
    assert abs(as_adam - expected.value) > 1e-4
    assert_exact(call(world, wrapped(world, steps=STEPS)), world, expected)


def test_a_subclass_that_leaves_step_alone_is_its_parent():
    """Adam's rule, without a trace."""
    world = world_of(NamedAdam)
    assert rule_of(world.optimizer) is AdamRule
    assert_exact(call(world, wrapped(world, steps=STEPS)), world, expect(world, steps=STEPS), gap=5e-3)


def gradient_norms(world, steps):
    """How long the gradient is before each of the real steps."""
    found = []

    def note(params):
        found.append(float(torch.stack([p.grad.norm() for p in params]).norm()))

    oracle(reference.value, world, steps=steps, after_backward=note)
    return found


def alternating():
    """Long in the first of two steps, short in the second."""
    world = world_of(Clipped)
    group = world.optimizer.param_groups[0]
    group["limit"] = 0.99 * gradient_norms(world, 1)[0]
    assert [norm > group["limit"] for norm in gradient_norms(world, STEPS)] == [True, False]
    return world


def test_a_decision_that_changes_between_steps(traces):
    """Traced again where the step decides otherwise, and exact on both sides."""
    world = alternating()
    assert_exact(call(world, wrapped(world, steps=STEPS)), world, expect(world, steps=STEPS), gap=1e-3)
    assert len(traces) == 2


def test_a_decision_that_stays_is_traced_once(traces):
    """The control: the same optimizer, the same key, one trace for all steps."""
    world = world_of(Clipped)
    world.optimizer.param_groups[0]["limit"] = 0.5 * gradient_norms(world, 1)[0]
    assert_exact(call(world, wrapped(world, steps=3)), world, expect(world, steps=3), gap=1e-4)
    assert len(traces) == 1


def test_decisions_that_alternate_are_traced_once_each(traces):
    """The second call finds both traces."""
    world = alternating()
    unrolled = wrapped(world, steps=STEPS)
    values = {call(world, unrolled).item() for _ in range(3)}
    assert len(values) == 1
    assert len(traces) == 2


def test_arithmetic_with_item_is_refused():
    """It would be wrong in silence: the number's own derivative is lost."""
    world = world_of(Reading)
    unrolled = wrapped(world, steps=STEPS)
    before = snapshot(world)
    with pytest.raises(TypeError, match=r"(?s)Reading cannot be unrolled.*\.item\(\).*UpdateRule.*register_rule"):
        call(world, unrolled)
    assert changed(before, snapshot(world)) == []


def test_an_optimizer_that_holds_the_discriminator():
    """As a wrapper that clips all of D's gradients does; D's own tensors are in D while it steps."""
    world = world_of(Heavy)
    world.optimizer = Holding(world.discriminator.parameters(), world.discriminator)
    world.warm()
    expected = expect(world, steps=STEPS)
    unrolled = wrapped(world, steps=STEPS)
    before = snapshot(world)
    loss = call(world, unrolled)
    assert changed(before, snapshot(world)) == []
    assert_exact(loss, world, expected, gap=1e-3)


def test_the_second_call_traces_nothing(traces):
    """Same state, same traces; a live step later all of them but one serve again."""
    world = world_of(Heavy)
    unrolled = wrapped(world, steps=STEPS)
    first = call(world, unrolled).item()
    assert len(traces) == STEPS
    assert call(world, unrolled).item() == first
    assert len(traces) == STEPS
    world.warm(1)
    assert_value(call(world, unrolled), oracle(reference.value, world, steps=STEPS))
    assert len(traces) == STEPS + 1


def test_it_says_so_once(caplog):
    """One record at INFO for each optimizer that is traced, with its class; none for one that has a rule."""
    caplog.set_level(logging.INFO, logger="unroll_wrap")

    def said():
        return [
            record.getMessage()
            for record in caplog.records
            if record.name.startswith("unroll_wrap") and record.levelno == logging.INFO
        ]

    world = world_of(Heavy)
    unrolled = wrapped(world, steps=1)
    call(world, unrolled), call(world, unrolled)
    assert len(said()) == 1 and "Heavy" in said()[0] and "traced" in said()[0]
    world.warm(1)
    call(world, wrapped(world, steps=1))
    assert len(said()) == 1
    other = world_of(Heavy)
    call(other, wrapped(other, steps=1))
    assert len(said()) == 2
    adam = world_of(torch.optim.Adam)
    call(adam, wrapped(adam, steps=1))
    assert len(said()) == 2


@pytest.mark.parametrize(
    "name",
    ["unused_head", "sometimes_used_head", "frozen_from_the_start", "two_groups", "two_discriminators_two_optimizers"],
)
def test_parameters_without_gradient_frozen_ones_and_groups(name):
    """Skipped, still, and each by its own options, as in the real step."""
    torch.manual_seed(0)
    world = PROBLEMS[name].build(lambda params: Heavy(params, lr=0.1, decay=0.05)).warm()
    assert_exact(call(world, unrolled_of(world, steps=STEPS)), world, expect(world, steps=STEPS), gap=5e-3)


def test_some_parameters_are_traced_and_others_have_a_rule():
    """Two optimizers over one D, one of each kind."""
    world = warm_world()
    D = world.discriminator
    world.optimizer = [Heavy(D[0].parameters()), torch.optim.Adam(D[2].parameters(), lr=0.02)]
    world.warm()
    assert_exact(call(world, unrolled_of(world, steps=STEPS)), world, expect(world, steps=STEPS))


def test_transforms_before_and_after():
    """grad_transform and param_transform with a traced step between them."""
    world = world_of(Heavy)

    def shrink(grads):
        norm = torch.stack([(g**2).sum() for g in grads]).sum().sqrt()
        return [g / (1 + norm) for g in grads]

    def shrink_in_place(params):
        for p, g in zip(params, shrink([p.grad for p in params]), strict=True):
            p.grad = g

    def squash_in_place(params):
        for p in params:
            p.data = torch.tanh(p.data)

    expected = expect(world, steps=STEPS, after_backward=shrink_in_place, after_step=squash_in_place)
    unrolled = wrapped(world, steps=STEPS, grad_transform=shrink, param_transform=torch.tanh)
    assert_exact(call(world, unrolled), world, expected, gap=1e-3)
    assert abs(oracle(reference.value, world, steps=STEPS) - expected.value) > 1e-3
