"""The seam: a rule of the user's own, registered for an optimizer of the user's own."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from checks import assert_exact, call, expect
from problems import PROBLEMS
from torch import Tensor
from torch_table import world_of, wrapped

import unroll_wrap.optimizers.read
from unroll_wrap import UpdateRule, register_rule


class Lion(torch.optim.Optimizer):
    """A smooth relative of Lion: tanh in the place of the sign, and a scale by the whole tensor."""

    def __init__(self, params, lr=0.05, betas=(0.8, 0.9), sharpness=5.0, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "sharpness": sharpness, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["step"], state["momentum"] = 0, torch.zeros_like(p)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                mixed = state["momentum"].lerp(p.grad, 1 - beta1)
                p.add_(torch.tanh(group["sharpness"] * mixed), alpha=-group["lr"] / (1 + 0.1 * state["step"]))
                state["momentum"].lerp_(p.grad, 1 - beta2)
                state["step"] += 1


class LionState(NamedTuple):
    """Updates so far, and the running mean of the gradient."""

    step: float
    momentum: Tensor


@dataclass(frozen=True)
class LionRule(UpdateRule):
    """θ ← (1 - lr · weight_decay) · θ - lr / (1 + t / 10) · tanh(sharpness · lerp(m, g))."""

    lr: Any
    betas: tuple[float, float]
    sharpness: float
    weight_decay: float
    calls: ClassVar[list[int]] = []

    def init(self, param: Tensor) -> LionState:
        return LionState(0.0, torch.zeros_like(param))

    def update(self, param: Tensor, grad: Tensor, state: LionState) -> tuple[Tensor, LionState]:
        self.calls.append(param.numel())
        beta1, beta2 = self.betas
        param = param * (1 - self.lr * self.weight_decay)
        mixed = torch.lerp(state.momentum, grad, 1 - beta1)
        param = torch.add(param, torch.tanh(self.sharpness * mixed), alpha=-self.lr / (1 + 0.1 * state.step))
        return param, LionState(state.step + 1, torch.lerp(state.momentum, grad, 1 - beta2))


@dataclass(frozen=True)
class TensorwiseLionRule(LionRule):
    """The same, told that it mixes the entries of a parameter."""

    elementwise: ClassVar[bool] = False


@pytest.fixture(autouse=True)
def rules_are_put_back(monkeypatch):
    monkeypatch.setattr(unroll_wrap.optimizers.read, "RULES", dict(unroll_wrap.optimizers.read.RULES))
    LionRule.calls.clear()


@pytest.mark.parametrize(("rule", "sizes"), [(LionRule, {17}), (TensorwiseLionRule, {8, 4, 1})])
@pytest.mark.parametrize("warm", [True, False])
def test_a_custom_rule_is_exact(rule, sizes, warm):
    """By the oracle, which steps the real optimizer; elementwise parameters arrive as one flat vector."""
    register_rule(Lion, rule)
    world = world_of(lambda params: Lion(params, weight_decay=0.1), warm=warm)
    assert_exact(call(world, wrapped(world, steps=3)), world, expect(world, steps=3), gap=1e-3)
    assert set(LionRule.calls) == sizes


def test_a_rule_that_is_registered_after_a_call():
    """The remedy that the error of an optimizer without a rule names."""

    class Reading(Lion):
        def step(self, closure=None):
            super().step(closure)
            for p in self.param_groups[0]["params"]:
                self.last = p.sum().item()

    world = world_of(lambda params: Reading(params, weight_decay=0.1))
    unrolled = wrapped(world, steps=3)
    with pytest.raises(TypeError, match="register_rule"):
        call(world, unrolled)
    register_rule(Reading, LionRule)
    assert_exact(call(world, unrolled), world, expect(world, steps=3), gap=1e-3)


def test_a_wrong_rule_is_caught_by_the_oracle():
    """The control: a rule that forgets the decay."""

    @dataclass(frozen=True)
    class Forgetful(LionRule):
        def update(self, param, grad, state):
            return LionRule(self.lr, self.betas, self.sharpness, 0.0).update(param, grad, state)

    register_rule(Lion, Forgetful)
    world = world_of(lambda params: Lion(params, weight_decay=0.1))
    unrolled = wrapped(world, steps=3)
    with pytest.raises(ValueError, match="Lion steps by Forgetful, a registered rule"):
        call(world, unrolled)
    unrolled.prove = False
    loss, expected = call(world, unrolled), expect(world, steps=3)
    with pytest.raises(AssertionError, match="real steps give"):
        assert_exact(loss, world, expected)


class Stateless(NamedTuple):
    """The state of a rule that keeps nothing."""


@dataclass(frozen=True)
class Descent(UpdateRule):
    """θ ← θ - lr · g, as in the docstring of ``UpdateRule``."""

    lr: float

    def init(self, param: Tensor) -> Stateless:
        return Stateless()

    def update(self, param: Tensor, grad: Tensor, state: Stateless) -> tuple[Tensor, Stateless]:
        return param - self.lr * grad, state


def test_a_rule_without_state_in_a_discriminator_with_an_unused_parameter():
    class Plain(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)

    register_rule(Plain, Descent)
    world = PROBLEMS["unused_head"].build(lambda params: Plain(params, lr=0.1)).warm()
    assert_exact(call(world, wrapped(world, steps=3)), world, expect(world, steps=3), gap=1e-3)


class Counted(NamedTuple):
    """Updates so far as an int, and what else an optimizer keeps as one."""

    step: int
    momentum: Tensor
    phase: int


@dataclass(frozen=True)
class CountedRule(LionRule):
    """The same, counting in ints."""

    def init(self, param: Tensor) -> Any:
        return Counted(0, torch.zeros_like(param), 3)

    def update(self, param: Tensor, grad: Tensor, state: Any) -> tuple[Tensor, Any]:
        assert type(state.step) is int and type(state.phase) is int
        param, new = super().update(param, grad, state)
        return param, Counted(int(new.step), new.momentum, state.phase)


@pytest.mark.parametrize("kept", [int, float, torch.tensor])
@pytest.mark.parametrize("warm", [True, False])
def test_a_rule_that_counts_in_ints(kept, warm):
    """However the optimizer keeps the count."""

    class Counting(Lion):
        def step(self, closure=None):
            for state in self.state.values():
                state["step"] = int(state["step"])
            super().step(closure)
            for state in self.state.values():
                state["step"], state["phase"] = kept(state["step"]), kept(3)

    register_rule(Counting, CountedRule)
    world = world_of(lambda params: Counting(params, weight_decay=0.1), warm=warm)
    assert_exact(call(world, wrapped(world, steps=3)), world, expect(world, steps=3), gap=1e-3)


@pytest.mark.parametrize("initial", [torch.zeros((), dtype=torch.long), torch.zeros(()), torch.zeros(3)])
@pytest.mark.parametrize("warm", [True, False])
def test_a_tensor_that_cannot_be_packed_names_the_key(initial, warm):
    """A count in a tensor, whatever the live optimizer has."""

    @dataclass(frozen=True)
    class Tensors(LionRule):
        def init(self, param):
            return LionState(initial, torch.zeros_like(param))  # pyright: ignore[reportArgumentType]

    register_rule(Lion, Tensors)
    world = world_of(Lion, warm=warm)
    with pytest.raises(ValueError, match=r"The rule Tensors starts with step = .* a count is a plain number"):
        call(world, wrapped(world, steps=1))


def test_a_count_that_the_optimizer_lacks_names_the_key():
    """As for tensors."""
    register_rule(Lion, CountedRule)
    world = world_of(Lion)
    with pytest.raises(ValueError, match="Lion keeps phase = None for a parameter"):
        call(world, wrapped(world, steps=1))


def test_groups_and_subclasses_use_the_registered_rule():
    """Options of each group; a subclass that leaves step() alone; one that does not is traced."""

    class Cub(Lion):
        pass

    class Tiger(Lion):
        def step(self, closure=None):
            super().step(closure)

    register_rule(Lion, LionRule)
    world = world_of(lambda params: Cub([{"params": list(params)[:2]}], lr=0.02), warm=False)
    D = world.discriminator
    world.optimizer.add_param_group({"params": D[2].parameters(), "lr": 0.1, "sharpness": 2.0})
    world.warm()
    assert_exact(call(world, wrapped(world, steps=3)), world, expect(world, steps=3), gap=1e-3)
    assert set(LionRule.calls) == {12, 5}
    assert unroll_wrap.optimizers.read.rule_of(Tiger(D.parameters())) is None


def test_a_state_of_another_shape_names_the_key():
    """The check that torch's own optimizers get."""
    register_rule(Lion, LionRule)
    world = world_of(Lion)
    weight = world.discriminator[0].weight
    world.optimizer.state[weight]["momentum"] = torch.zeros(3, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"Lion keeps momentum = \(3, 3\).*\(4, 2\)"):
        call(world, wrapped(world, steps=1))


@pytest.mark.parametrize("rule", [LionState, Lion, LionRule(0.1, (0.8, 0.9), 5.0, 0.0), None, "Lion"])
def test_what_is_no_rule_is_refused(rule):
    """An instance, another class, a name."""
    with pytest.raises(TypeError, match="UpdateRule"):
        register_rule(Lion, rule)


@pytest.mark.parametrize("optimizer", [LionRule, None, "Lion"])
def test_what_is_no_optimizer_class_is_refused(optimizer):
    """Otherwise the rule would never be found, in silence."""
    with pytest.raises(TypeError, match="(?i)optimizer"):
        register_rule(optimizer, LionRule)


def test_a_rule_that_asks_for_an_option_the_optimizer_lacks():
    """The message names the class and the option."""

    @dataclass(frozen=True)
    class Demanding(LionRule):
        mystery: float

    register_rule(Lion, Demanding)
    world = world_of(Lion)
    with pytest.raises((TypeError, ValueError), match="(?s)Lion.*mystery|mystery.*Lion"):
        call(world, wrapped(world, steps=1))
