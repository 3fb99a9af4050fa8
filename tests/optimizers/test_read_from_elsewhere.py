"""What a step reads from outside of its optimizer may change between calls; so may what was proven once."""

import copy
import sys
import types

import pytest
import torch
from situations import Accumulating, Situation, d_loss, g_loss
from torch.optim import optimizer as torchs

from unroll_wrap import UnrolledGeneratorLoss

CONFIG = {"scale": 0.5}


class Config:
    scale = 0.5


@pytest.fixture(autouse=True)
def fresh():
    torch.set_default_dtype(torch.float64)
    CONFIG["scale"] = Config.scale = 0.5
    sys.modules["a_config"] = types.ModuleType("a_config")
    sys.modules["a_config"].scale = 0.5
    yield
    del sys.modules["a_config"]
    torch.set_default_dtype(torch.float32)


class Scaled(torch.optim.SGD):
    def scale(self):
        raise NotImplementedError

    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.grad.mul_(self.scale())
        super().step(closure)


class ByAGlobal(Scaled):
    def scale(self):
        return CONFIG["scale"]


class ByAClass(Scaled):
    def scale(self):
        return Config.scale


class ByAModule(Scaled):
    def scale(self):
        import a_config

        return a_config.scale


class ByItsClass(Scaled):
    own = 0.5

    def scale(self):
        return self.own


def change(kind, factor):
    CONFIG["scale"] = Config.scale = sys.modules["a_config"].scale = kind.own = factor


def real_value(situation, seed, steps):
    """K real steps of a copy of everything."""
    twin = copy.deepcopy(situation)
    real, fake = twin.batch(seed)
    for _ in range(steps):
        twin.real_step(real, fake)
    return g_loss(twin.D, real, fake).item()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("kind", [ByAGlobal, ByAClass, ByAModule, ByItsClass])
def test_a_number_that_a_step_reads_from_elsewhere_is_followed(kind, momentum):
    """A trace of an earlier call is used again only if the live step still does the same."""
    change(kind, 0.5)
    situation = Situation(lambda D: kind(D.parameters(), lr=0.3, momentum=momentum))
    unrolled = UnrolledGeneratorLoss(situation.D, situation.stepper, d_loss, g_loss, steps=3)
    for turn, factor in enumerate((0.5, 0.5, 2.0, 0.1)):
        change(kind, factor)
        before = situation.record()
        found = unrolled(*situation.batch(turn)).item()
        assert situation.record() == before
        assert abs(found - real_value(situation, turn, 3)) < 1e-12
        real, fake = situation.batch(turn)
        situation.real_step(real, fake)


def test_a_global_hook_that_is_registered_between_calls():
    """It changes each step from then on."""
    situation = Situation(lambda D: ByAGlobal(D.parameters(), lr=0.3))
    unrolled = UnrolledGeneratorLoss(situation.D, situation.stepper, d_loss, g_loss, steps=3)
    unrolled(*situation.batch(0))

    def halve(optimizer, *_):
        for p in optimizer.param_groups[0]["params"]:
            p.grad.mul_(0.5)

    handle = torchs.register_optimizer_step_pre_hook(halve)
    try:
        found = unrolled(*situation.batch(1)).item()
        assert abs(found - real_value(situation, 1, 3)) < 1e-12
    finally:
        handle.remove()


@pytest.mark.filterwarnings("ignore:d_loss does not depend on the generator")
def test_a_zero_grad_that_clears_in_one_call_and_not_in_the_next():
    """With one step a call may be right, because nothing moves; the next one would be wrong."""
    situation = Situation(lambda D: Accumulating(torch.optim.SGD(D.parameters(), lr=0.1)))
    unrolled = UnrolledGeneratorLoss(situation.D, situation.stepper, d_loss, g_loss, steps=1)
    unrolled(*situation.batch(0))
    situation.stepper.step()
    before = situation.record()
    with pytest.raises(ValueError, match="zero_grad.. of the Accumulating leaves gradients at inner step 0"):
        unrolled(*situation.batch(1))
    assert situation.record() == before
    situation.stepper.step()
    unrolled(*situation.batch(1))


def test_more_steps_than_were_proven_are_proven_again():
    """A teacher that a hook moves after each step is at rest in a call of one step, and in none of more."""
    situation = Situation(lambda D: torch.optim.SGD(D.parameters(), lr=0.3))
    teacher = copy.deepcopy(situation.D).requires_grad_(False)

    def follow(*_):
        with torch.no_grad():
            for t, p in zip(teacher.parameters(), situation.D.parameters(), strict=True):
                t.lerp_(p, 0.2)

    def consistent(D, real, fake):
        return d_loss(D, real, fake) + (D(fake) - teacher(fake)).square().mean()

    situation.stepper.register_step_post_hook(follow)
    unrolled = UnrolledGeneratorLoss(situation.D, situation.stepper, consistent, g_loss, steps=1)
    unrolled(*situation.batch(0))
    with pytest.raises(ValueError, match="after 3 real steps of your own objects"):
        unrolled(*situation.batch(0), steps=3)


def test_a_hook_that_is_registered_later_is_proven_too():
    """Of the same kind as one that was proven."""
    situation = Situation(lambda D: torch.optim.SGD(D.parameters(), lr=0.3))
    weight = situation.D[0].weight
    weight.register_hook(lambda g: 1.5 * g)
    unrolled = UnrolledGeneratorLoss(situation.D, situation.stepper, d_loss, g_loss, steps=3)
    unrolled(*situation.batch(0))
    kept = {"momentum": torch.zeros_like(weight)}

    def momentum(g):
        kept["momentum"] = 0.5 * kept["momentum"] + g.detach()
        return g + kept["momentum"]

    weight.register_hook(momentum)
    # Its derivative is compared before its value.
    with pytest.raises(ValueError, match="A gradient hook on a parameter of D returns"):
        unrolled(*situation.batch(1))


def test_several_forms_of_one_optimizer():
    """Control: nothing changes, and the traces serve again."""
    situation = Situation(lambda D: ByAGlobal(D.parameters(), lr=0.3))
    unrolled = UnrolledGeneratorLoss(situation.D, situation.stepper, d_loss, g_loss, steps=3)
    unrolled(*situation.batch(0))
    (rule,) = unrolled._known.traces.values()
    traces = [trace for many in rule.memory.traces.values() for trace in many]
    unrolled(*situation.batch(1))
    assert traces and [t for many in rule.memory.traces.values() for t in many] == traces
