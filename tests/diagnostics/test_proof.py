"""The first call beside K real steps of the live objects, where the package has to guess."""

import itertools
import logging

import pytest
import torch
from checks import call, unrolled_of, warm_world
from snapshot import changed, snapshot

from unroll_wrap.optimizers.traced.traced import Traced

STEPS = 3


class Mine(torch.optim.SGD):
    """Has no rule: its step is its own."""

    def step(self, closure=None):
        return super().step(closure)


def traced_world():
    world = warm_world()
    world.optimizer = Mine(world.discriminator.parameters(), lr=0.1)
    return world


def counted(world):
    """The losses, and how often d_loss has run."""
    count, d_loss = itertools.count(), world.d_loss
    world.d_loss = lambda *batch: (next(count), d_loss(*batch))[1]
    return lambda: next(count)


def test_it_costs_k_real_steps_once():
    """And nothing where all is known; switched off it costs nothing."""
    for world, prove, evaluations in (
        (warm_world(), True, [STEPS, STEPS]),
        (traced_world(), True, [2 * STEPS, STEPS]),
        (traced_world(), False, [STEPS, STEPS]),
    ):
        asked, seen = counted(world), []
        unrolled, before = unrolled_of(world, steps=STEPS), snapshot(world)
        unrolled.prove = prove
        for _ in evaluations:
            start = asked()
            call(world, unrolled)
            seen.append(asked() - start - 1)
        assert seen == evaluations
        assert changed(before, snapshot(world)) == []


def test_a_wrong_value_is_an_error(monkeypatch):
    """A rule that is a hundredth off is found in the first call, and nothing has moved; the control is right."""
    world = traced_world()
    assert torch.isfinite(call(world, unrolled_of(world, steps=STEPS)))
    right = Traced.update

    def wrong(self, param, grad, state):
        return right(self, param, 1.01 * grad, state)

    monkeypatch.setattr(Traced, "update", wrong)
    before = snapshot(world)
    with pytest.raises(ValueError, match=r"real steps of your own objects.*Mine has no update rule"):
        call(world, unrolled_of(world, steps=STEPS))
    assert changed(before, snapshot(world)) == []
    unrolled = unrolled_of(world, steps=STEPS)
    unrolled.prove = False
    assert torch.isfinite(call(world, unrolled))


def test_a_loss_that_no_run_repeats_cannot_be_proven(caplog):
    """It is said once, and the call goes on."""
    world = traced_world()
    d_loss, numbers = world.d_loss, iter(torch.linspace(0, 1, 1000).tolist())
    world.d_loss = lambda *batch: d_loss(*batch) * (1 + next(numbers))
    unrolled = unrolled_of(world, steps=STEPS)
    with caplog.at_level(logging.WARNING, "unroll_wrap"):
        for _ in range(2):
            assert torch.isfinite(call(world, unrolled))
    assert [record.message.split(",")[0] for record in caplog.records] == ["The first call could not be proven"]


def test_draws_and_what_a_loss_counts_are_the_same_again():
    """Dropout and a count of the loss's own repeat in the proof, with resampled batches that draw too."""
    for resample in (False, True):
        world = warm_world("dropout")
        world.optimizer = Mine(world.discriminator.parameters(), lr=0.1)
        d_loss, state = world.d_loss, {"n": 0}

        def counting(*batch, d_loss=d_loss, state=state):
            state["n"] += 1
            return d_loss(*batch) * (1 + 0.1 * state["n"])

        def draw(k, world=world):
            real, fake = world.draw(k)
            return real + 0.1 * torch.randn_like(real), fake

        world.d_loss = counting
        loss = call(world, unrolled_of(world, steps=STEPS, resample=draw if resample else None))
        assert torch.isfinite(loss) and state["n"] == STEPS
