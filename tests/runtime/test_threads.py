"""Two threads at once: of two models both are right, of one model the second is refused."""

import sys
import threading
from contextlib import nullcontext

import pytest
import torch
import torch.utils.checkpoint as checkpoints
from checks import assert_exact, call, distance, expected_of, gradient_of, unrolled_of, warm_world
from snapshot import changed, snapshot

from unroll_wrap import Recompute
from unroll_wrap.backward import recompute

STEPS = 3


class Thread(threading.Thread):
    """Keeps the result, or what was raised."""

    def __init__(self, function):
        super().__init__()
        self.function, self.result, self.error = function, None, None
        self.start()

    def run(self):
        torch.set_num_threads(1)
        try:
            self.result = self.function()
        except BaseException as error:
            self.error = error

    def get(self):
        self.join(30)
        assert not self.is_alive()
        if self.error is not None:
            raise self.error
        return self.result


def meeting(loss, barrier):
    """The same loss, which first waits until the other thread is within one of its own."""

    def met(*args):
        barrier.wait(30)
        return loss(*args)

    return met


def at_once(worlds):
    """Loss and gradient of a call on each world, all in threads of their own, evaluation beside evaluation."""
    barrier, lock = threading.Barrier(len(worlds)), threading.Lock()

    def work(world):
        with lock:
            batch = world.batch()
        unrolled = unrolled_of(world, steps=STEPS)
        loss = unrolled(*batch, d_loss=meeting(world.d_loss, barrier), g_loss=meeting(world.g_loss, barrier))
        return loss, gradient_of(loss, world)

    return [thread.get() for thread in [Thread(lambda w=w: work(w)) for w in worlds]]


def settings():
    return torch.backends.cuda.flash_sdp_enabled(), torch.backends.cudnn.enabled, checkpoints._CheckpointFrame


@pytest.mark.parametrize("names", [("mlp", "attention"), ("lstm", "weight_norm_legacy")])
def test_two_models_at_once(names):
    """Each as exact as alone, and what the first has set the last one puts back."""
    before = settings()
    worlds = [warm_world(n) for n in names]
    for (loss, gradient), name, world in zip(at_once(worlds), names, worlds, strict=True):
        expected = expected_of(name, "adam", STEPS)
        assert_exact(loss, world, expected)
        assert distance(gradient, expected) < 1e-7
    assert settings() == before


def test_checkpointed_parts_of_two_models_at_once():
    """Each runs again with its own tensors. Without masks, which would be drawn from the stream that both share."""
    worlds = [warm_world("checkpointed"), warm_world("checkpointed")]
    for world in worlds:
        world.discriminator.first[3].p = 0.0
    with torch.no_grad():
        worlds[1].discriminator.last.weight.mul_(2)
    alone = [call(world, unrolled_of(world, steps=STEPS)) for world in worlds]
    assert alone[0] != alone[1]
    for one, (loss, gradient), world in zip(alone, at_once(worlds), worlds, strict=True):
        assert loss == one
        assert all(torch.equal(a, b) for a, b in zip(gradient, gradient_of(one, world), strict=True))


@pytest.mark.parametrize("steps", [0, 1, STEPS])
def test_one_model_twice_is_refused(steps):
    """The second thread is told, whatever wrapper it has; nothing changes, and the first one is exact."""
    expected, world = expected_of("mlp", "adam", STEPS), warm_world()
    first, second = unrolled_of(world, steps=STEPS), unrolled_of(world, steps=steps)
    batches, inside, done = (world.batch(), world.batch()), threading.Event(), threading.Event()
    before = snapshot(world)

    def waiting(*args):
        inside.set()
        assert done.wait(30)
        return world.g_loss(*args)

    thread = Thread(lambda: first(*batches[0], g_loss=waiting))
    assert inside.wait(30)
    with pytest.raises(RuntimeError, match=r"Another thread is unrolling.*Sequential.*(Lock|deepcopy)"):
        second(*batches[1])
    done.set()
    assert_exact(thread.get(), world, expected)
    assert changed(before, snapshot(world)) == []
    assert_exact(call(world, first), world, expected)


def test_one_model_one_thread_after_the_other():
    """A thread that is through leaves nothing behind, even if it failed."""
    expected, world = expected_of("mlp", "adam", STEPS), warm_world()
    unrolled = unrolled_of(world, steps=STEPS)

    def failing(*_):
        raise ValueError("here")

    with pytest.raises(ValueError, match="here"):
        Thread(lambda: call(world, unrolled, d_loss=failing)).get()
    assert_exact(Thread(lambda: call(world, unrolled)).get(), world, expected)


def test_an_unroll_within_a_loss_is_refused():
    """By the same thread, of the same D, which holds other tensors at that time; everything is put back."""
    expected, world = expected_of("mlp", "adam", STEPS), warm_world()
    unrolled = unrolled_of(world, steps=STEPS)
    before = snapshot(world)
    with pytest.raises(RuntimeError, match=r"Sequential.*unrolled already.*plain loss"):
        call(world, unrolled, g_loss=lambda D, *batch: unrolled(*batch))
    assert changed(before, snapshot(world)) == []
    assert_exact(call(world, unrolled), world, expected)


def dropping_out():
    """Two threads with twenty calls each, with dropout in D and steps that are replayed.

    The batches are made beforehand: what a program draws outside of a call is not the call's to protect from.
    """

    def calls(world, unrolled, batches):
        return [gradient_of(unrolled(*batch), world) for batch in batches]

    worlds = [warm_world("dropout") for _ in range(2)]
    ready = [(w, unrolled_of(w, steps=STEPS, backward=Recompute()), [w.batch() for _ in range(20)]) for w in worlds]
    threads = [Thread(lambda given=given: calls(*given)) for given in ready]
    for thread in threads:
        thread.join(60)  # Of one that raises, the other goes on.
    return [thread.get() for thread in threads]


def test_dropout_and_replays_in_two_threads(monkeypatch):
    """Each draws the numbers of a step again, whatever the other draws; the control is without taking turns."""
    assert all(g.isfinite().all() for gradients in dropping_out() for gradient in gradients for g in gradient)
    monkeypatch.setattr(recompute, "undisturbed", nullcontext)
    sys.setswitchinterval(1e-6)
    try:
        with pytest.raises(RuntimeError, match="not replayable"):
            for _ in range(20):
                dropping_out()
    finally:
        sys.setswitchinterval(0.005)
