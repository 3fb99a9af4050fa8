"""torch.utils.checkpoint inside D: exact in every way to write the call (the row `checkpointed`), and undisturbed."""

import pytest
import torch
import torch.utils.checkpoint
from checks import (
    MODES,
    assert_exact_in,
    assert_value,
    call,
    distance,
    expected_of,
    gradient_of,
    unrolled_of,
    warm_world,
)
from problems import PROBLEMS
from snapshot import changed, snapshot

from unroll_wrap import Recompute, Truncate
from unroll_wrap.evaluation import checkpoints

STEPS = 3


@pytest.mark.parametrize("backward", [Recompute(), Recompute(2), Truncate(STEPS)])
def test_every_backward(backward):
    """A step that runs again, parts of which run again."""
    expected, world = expected_of("checkpointed", "adam", STEPS), warm_world("checkpointed")
    assert_exact_in(MODES, world, unrolled_of(world, steps=STEPS, backward=backward), expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("steps", [0, 1, STEPS])
def test_what_runs_again_in_the_users_backward_moves_nothing(mode, steps):
    """Neither D's statistics nor its parameters, nor the random stream; twice as well."""
    world = warm_world("checkpointed")
    loss = call(world, unrolled_of(world, steps=steps), mode)
    before, state = snapshot(world), torch.get_rng_state()
    first, second = gradient_of(loss, world), gradient_of(loss, world)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert changed(before, snapshot(world)) == []
    assert torch.equal(state, torch.get_rng_state())


def test_a_step_of_d_before_the_users_backward():
    """The gradient is that of the call, whatever D holds by the time of backward()."""
    world = warm_world("checkpointed")
    loss = call(world, unrolled_of(world, steps=STEPS), "closure")
    exact = gradient_of(loss, world)
    with torch.no_grad():
        for p in world.discriminator.parameters():
            p += 1
    assert all(torch.equal(a, b) for a, b in zip(gradient_of(loss, world), exact, strict=True))


def test_without_this_it_is_silently_wrong(monkeypatch):
    """The control: left to torch, what runs again finds the live tensors."""
    expected, world = expected_of("mlp", "adam", STEPS), warm_world()
    D = world.discriminator
    body = D.forward
    D.forward = lambda x: torch.utils.checkpoint.checkpoint(body, x, use_reentrant=False)
    unrolled = unrolled_of(world, steps=STEPS)
    assert_exact_in(MODES, world, unrolled, expected)
    monkeypatch.setattr(checkpoints, "_again", lambda function, swap: function)
    loss = call(world, unrolled, "closure")
    assert_value(loss, expected.value)
    assert distance(gradient_of(loss, world), expected) > 1e-2


@pytest.mark.parametrize("steps", [0, STEPS])
@pytest.mark.parametrize("mode", MODES)
def test_reentrant_checkpoints_are_refused(mode, steps):
    """They hide D's first layer from autograd.grad, in silence; the message says what to pass instead."""
    world = warm_world("checkpointed")
    D = world.discriminator
    D.forward = lambda x: D.last(torch.utils.checkpoint.checkpoint(D.first, x, use_reentrant=True))
    before = snapshot(world)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        call(world, unrolled_of(world, steps=steps), mode)
    assert changed(before, snapshot(world)) == []
    D(world.batch()[1]).sum().backward()  # outside it is torch's own
    assert D.first[0].weight.grad.abs().sum() > 0


def test_a_torch_that_checkpoints_otherwise_is_refused(monkeypatch):
    """Its parts have no public names. Where they are not found, checkpoints are an error, and nothing else is."""
    expected, world = expected_of("mlp", "adam", STEPS), warm_world()
    hidden = warm_world("checkpointed")
    monkeypatch.delattr(torch.utils.checkpoint, "_CheckpointFrame")
    assert_exact_in(MODES, world, unrolled_of(world, steps=STEPS), expected)

    def call_with_hooks():
        with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
            pass

    def d_loss(*batch):
        call_with_hooks()
        return PROBLEMS and hidden.d_loss(*batch)

    with pytest.raises(RuntimeError, match=r"checkpoint.*is_unrolling"):
        call(hidden, unrolled_of(hidden, steps=STEPS), d_loss=d_loss)
    call_with_hooks()
