"""Every row of the optimizer table, adopted live or from a spec."""

import functools
import subprocess
import sys

import pytest
import reference
import torch
from checks import (
    assert_exact,
    assert_exact_in,
    assert_value,
    call,
    expect,
    expected_of,
    gradient_of,
    oracle,
    unrolled_of,
    warm_world,
)
from optimizers import OPTIMIZERS

from unroll_wrap import UnrolledGeneratorLoss


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_live_state_is_adopted_exactly(optimizer, steps):
    """Value and gradient from the warm state of the real optimizer."""
    expected, world = expected_of("mlp", optimizer, steps), warm_world("mlp", optimizer)
    assert_exact_in(("argument", "closure"), world, unrolled_of(world, steps=steps), expected)


@pytest.mark.parametrize("optimizer", ["adam_all", "adamw", "sgd_nesterov_all", "sgd_weight_decay"])
@pytest.mark.parametrize("name", ["unused_head", "sometimes_used_head", "two_groups", "frozen_from_the_start", "tied"])
def test_options_meet_parameters_without_gradient_and_groups(name, optimizer):
    """No decay and no step count where torch skips; each group its own options."""
    expected, world = expected_of(name, optimizer, 2), warm_world(name, optimizer)
    assert_exact(call(world, unrolled_of(world, steps=2)), world, expected, gap=5e-3)


@pytest.mark.parametrize("optimizer", ["adam", "adam_all", "adamw", "sgd", "sgd_momentum", "sgd_nesterov_all"])
def test_a_spec_starts_every_call_from_fresh_state(optimizer):
    """functools.partial and lambdas: fresh state each call, D's parameters live; the warm state is far away."""
    world = warm_world("mlp", optimizer)
    spec = OPTIMIZERS[optimizer]
    if "adam" in optimizer:
        # Fresh Adam is a sign as long as |g| >> eps: a kink per coordinate, and next to no second term.
        spec = functools.partial(spec, eps=1e-2)
    assert isinstance(spec, functools.partial)
    expected = expect(world, steps=3, optimizer=spec)
    unrolled = UnrolledGeneratorLoss(world.discriminator, spec, world.d_loss, world.g_loss, steps=3)
    for _ in range(2):
        assert_exact(call(world, unrolled), world, expected, gap=1e-3)
    if optimizer != "sgd":  # which has no state
        live = oracle(reference.value, world, steps=3)
        assert abs(live - expected.value) > 1e-4 * abs(live)


@pytest.mark.parametrize(("optimizer", "steps"), [("sgd", 3), ("adam_large_eps", 3)])
def test_a_live_optimizer_that_has_not_stepped_yet(optimizer, steps):
    """Empty state is what the first real step makes of it, and stays empty."""
    world = warm_world("mlp", optimizer)
    world.optimizer = OPTIMIZERS[optimizer](world.discriminator.parameters())
    expected = expect(world, steps=steps)
    unrolled = unrolled_of(world, steps=steps)
    assert_exact(call(world, unrolled), world, expected, gap=5e-3)
    assert len(world.optimizer.state) == 0


def reschedule(world):
    torch.optim.lr_scheduler.StepLR(world.optimizer, 1, gamma=0.3).step()


def reload(world):
    state = world.optimizer.state_dict()
    for entry in state["state"].values():
        entry["exp_avg"] = entry["exp_avg"] * 0.2
        entry["step"] = entry["step"] + 7
    world.optimizer.load_state_dict(state)


def retune(world):
    world.optimizer.param_groups[0].update(lr=0.05, betas=(0.3, 0.8), eps=1e-3, weight_decay=0.1)


def regroup(world):
    world.optimizer.param_groups[0]["params"], rest = (
        world.optimizer.param_groups[0]["params"][:2],
        (world.optimizer.param_groups[0]["params"][2:]),
    )
    world.optimizer.add_param_group({"params": rest, "lr": 0.003})


def forget(world):
    world.optimizer.state.clear()


# torch warns that the scheduler steps before the optimizer: in this order it does not know of the warm-up.
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("change", [reschedule, reload, retune, regroup, forget])
def test_hyperparameters_and_state_are_read_afresh(change):
    """What changed between two calls is in the second one; and the change is large enough to see."""
    world = warm_world()
    unrolled = unrolled_of(world, steps=3)
    before = call(world, unrolled).item()
    change(world)
    expected = expect(world, steps=3)
    loss = call(world, unrolled)
    # A forgotten state makes the first step a sign: its second term is nearly nothing.
    assert_exact(loss, world, expected, gap=1e-3)
    assert abs(before - loss.item()) > 1e-4


class Wrapper:
    """The shape of an accelerate, Lightning or Fabric optimizer."""

    def __init__(self, optimizer):
        self.optimizer = optimizer


@pytest.mark.parametrize("wrap", [Wrapper, lambda o: Wrapper(Wrapper(o)), lambda o: [o], lambda o: [Wrapper(o)]])
def test_a_wrapped_optimizer_is_the_optimizer(wrap):
    """A wrapper that exposes .optimizer, twice over, or a list of one: the same as the bare one."""
    world = warm_world()
    unrolled = UnrolledGeneratorLoss(world.discriminator, wrap(world.optimizer), world.d_loss, world.g_loss, steps=3)
    assert_exact(call(world, unrolled), world, expected_of("mlp", "adam", 3))


def test_two_optimizers_over_one_discriminator():
    """A list of optimizers of different classes that share one D."""
    world = warm_world()
    D = world.discriminator
    world.optimizer = [
        torch.optim.SGD(D[0].parameters(), lr=0.2, momentum=0.9),
        torch.optim.Adam(D[2].parameters(), lr=0.02),
    ]
    world.warm()
    assert_exact(call(world, unrolled_of(world, steps=3)), world, expect(world, steps=3))


def test_part_of_the_discriminator_is_owned_and_the_rest_stays():
    """What the optimizer does not own does not move, and its gradient reaches the real tensor."""
    world = warm_world()
    D = world.discriminator
    world.optimizer = torch.optim.Adam(D[2].parameters(), lr=0.02, betas=(0.5, 0.9))
    world.warm()
    world.inputs = [*world.generator.parameters(), *D[0].parameters()]
    loss = call(world, unrolled_of(world, steps=3))
    assert_exact(loss, world, expect(world, steps=3))
    assert len(gradient_of(loss, world)) == len(world.inputs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="capturable optimizers exist on accelerators only")
@pytest.mark.parametrize("options", [{"capturable": True}, {"fused": True}, {"capturable": True, "foreach": True}])
def test_value_of_capturable_optimizers_on_cuda(options):
    """The value of K real steps, on the device."""
    world = warm_world()
    world.discriminator.cuda(), world.generator.cuda()
    world.optimizer = torch.optim.Adam(world.discriminator.parameters(), lr=0.02, betas=(0.5, 0.9), **options)
    drawn = world.draw
    real, noise = drawn(0)[0].cuda(), torch.randn(6, 2, dtype=torch.float64, device="cuda")
    world.draw = lambda i: (real, world.generator(noise))
    world.warm()
    assert_value(call(world, unrolled_of(world, steps=3)).cpu(), oracle(reference.value, world, steps=3).cpu())


@pytest.mark.parametrize("body", ["pass", "kind = 1", "def state_dict(self): return super().state_dict()"])
def test_a_subclass_whose_instance_is_the_first_of_all(body):
    """Torch then wraps the step that the subclass inherits, and not Adam's own: the rule applies all the same."""
    code = f"""
import torch
from unroll_wrap.optimizers.read import rule_of
class Mine(torch.optim.Adam):
    {body}
class Stepping(torch.optim.Adam):
    def step(self, closure=None): return super().step(closure)
p = [torch.nn.Parameter(torch.zeros(2))]
mine, stepping = Mine(p), Stepping(p)
assert "step" in vars(Mine), "this torch wraps nothing"
assert rule_of(mine).__name__ == "Adam", "traced"
assert rule_of(torch.optim.Adam(p)).__name__ == rule_of(mine).__name__ == "Adam"
assert rule_of(stepping) is None
mine.register_step_pre_hook(lambda *_: None)
assert rule_of(mine) is None
Mine.step = lambda self, closure=None: None
assert rule_of(Mine(p)) is None
"""
    subprocess.run([sys.executable, "-c", code], check=True)
