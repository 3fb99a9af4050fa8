"""Ctrl-C at every line of a call: everything is as it was, and the next call is right."""

import contextlib
import gc
import os
import sys
from contextlib import nullcontext
from functools import partialmethod

import pytest
import torch
from checks import call, gradient_of, unrolled_of, warm_world
from snapshot import changed, snapshot
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

import unroll_wrap
from unroll_wrap import Recompute, Store, is_unrolling
from unroll_wrap.evaluation.stand_ins import _tensor_for
from unroll_wrap.live import undo
from unroll_wrap.live.exclusive import _thread_of
from unroll_wrap.live.random_state import _drawing

PACKAGE = os.path.dirname(unroll_wrap.__file__)
INIT, RUN, STEPS = RemovableHandle.__init__, torch.autograd._engine_run_backward, 1
ENTER, APPLY = saved_tensors_hooks.__enter__, vars(torch.autograd.Function)["apply"]


class Interrupt:
    """Raises at the n-th time that a line of the package is reached, as a signal does between two instructions.

    Without a line it counts how often each is.
    """

    def __init__(self, line=None, nth=0):
        self.line, self.left, self.counts = line, nth, {}

    def __enter__(self):
        sys.settrace(self.trace)
        return self

    def __exit__(self, *_):
        sys.settrace(None)

    def trace(self, frame, event, _):
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            where = frame.f_code.co_filename, frame.f_lineno
            self.counts[where] = self.counts.get(where, 0) + 1
            if where == self.line:
                self.left -= 1
                if self.left == 0:
                    sys.settrace(None)
                    raise KeyboardInterrupt
        return self.trace


def around(name):
    if name == "stood in for":
        return saved_tensors_hooks(lambda t: t, lambda t: t)
    return torch.autocast("cpu", dtype=torch.bfloat16) if name == "autocast" else nullcontext()


WORLDS = {
    "mlp": ("mlp", "adam", Store()),
    "recomputed": ("dropout", "adam", Recompute()),
    "buffers": ("batchnorm_two_batches", "adam", Store()),
    "attention": ("attention", "adam", Store()),
    "recurrent": ("lstm", "adam", Store()),
    "checkpointed": ("checkpointed", "adam", Store()),
    "kept": ("plain_attributes", "adam", Recompute()),
    "autocast": ("mlp", "adam", Store()),
    "stood in for": ("batchnorm_two_batches", "adam", Recompute()),
}


def marks():
    """What a call must leave alone besides the user's objects."""
    return (
        is_unrolling(),
        torch.is_grad_enabled(),
        torch._C._len_torch_function_stack(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.is_autocast_cache_enabled(),
        dict(_thread_of),
        undo.owned(_drawing),
        RemovableHandle.__init__ is INIT,
        torch.autograd._engine_run_backward is RUN,
        saved_tensors_hooks.__enter__ is ENTER,
        vars(torch.autograd.Function)["apply"] is APPLY,
        dict(_tensor_for),
        torch.backends.cuda.flash_sdp_enabled(),
        torch._C._get_cudnn_enabled(),
        torch.utils.checkpoint._CheckpointFrame,
        sys.modules["torch._dynamo.eval_frame"]._stance if "torch._dynamo.eval_frame" in sys.modules else None,
    )


@pytest.mark.parametrize("name", WORLDS)
def test_at_every_line(name):
    """At the first and at the last time that a line is reached."""
    problem, optimizer, backward = WORLDS[name]
    world = warm_world(problem, optimizer)
    world.before_call()
    unrolled = unrolled_of(world, steps=STEPS, backward=backward)
    state = torch.get_rng_state()

    def once():
        torch.set_rng_state(state)
        with around(name):
            loss = call(world, unrolled)
            return loss.item(), gradient_of(loss, world)

    right, gradient = once()
    once()  # What is done in a first call alone is done.
    with Interrupt() as counting:
        once()
    before, now = snapshot(world), marks()
    hit = 0
    for line, times in counting.counts.items():
        for nth in sorted({1, times}):
            with around(name):
                torch.set_rng_state(state)
                stopped = Interrupt(line, nth)
                within = marks()
                try:
                    with stopped:
                        call(world, unrolled)
                except KeyboardInterrupt:
                    hit += 1
                assert marks() == within, (line, nth)
            assert changed(before, snapshot(world)) == [], (line, nth)
            assert marks() == now, (line, nth)
    assert hit > 500
    again, other = once()
    assert again == right and all(torch.equal(a, b) for a, b in zip(gradient, other, strict=True))


def test_the_control(monkeypatch):
    """Where nothing is undone there is damage, which the test would see; here it is undone at the end after all."""
    entered, leave = [], undo.Undo.__exit__
    monkeypatch.setattr(undo.Undo, "__enter__", lambda self: (entered.append(self), self)[1])
    monkeypatch.setattr(undo.Undo, "__exit__", lambda self, *_: None)
    world = warm_world()
    before, now = snapshot(world), marks()
    call(world, unrolled_of(world, steps=1))
    assert changed(before, snapshot(world)) != []
    assert marks() != now
    for one in reversed(entered):
        leave(one)
    assert changed(before, snapshot(world)) == []
    assert marks() == now


class Passing(TorchFunctionMode):
    """A mode of the user's, as a device context is one."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class InTorch:
    """Interrupts at the n-th time that torch leaves a mode for as long as a function of it runs."""

    def __init__(self, nth):
        self.left = nth
        self.pop = torch.overrides._pop_mode
        self.enter = contextlib._GeneratorContextManager.__enter__
        self.context = torch.overrides._pop_mode_temporarily.__wrapped__

    def count(self):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt

    def popped(self):
        """Before the generator has anything to undo."""
        old = self.pop()
        if sys._getframe(1).f_code is self.context.__code__:
            self.count()
        return old

    def entered(context, self):
        """After it has, and before anything will leave it; this stands in for a method of the context."""
        value = self.enter(context)
        if context.gen.gi_code is self.context.__code__:
            self.count()
        return value


@pytest.mark.parametrize("where", ["in the context", "as it is entered"])
def test_while_torch_has_left_a_mode(monkeypatch, where):
    """Torch leaves each mode while that runs, and an interrupt there loses it, or has it put back too late."""
    world = warm_world("batchnorm_two_batches")
    unrolled = unrolled_of(world, steps=3)
    call(world, unrolled)
    before, reached = snapshot(world), 0
    for nth in range(1, 5):
        stopping = InTorch(nth)
        with Passing() as mine, monkeypatch.context() as patch:
            if where == "in the context":
                patch.setattr(torch.overrides, "_pop_mode", stopping.popped)
            else:
                patch.setattr(
                    contextlib._GeneratorContextManager, "__enter__", partialmethod(InTorch.entered, stopping)
                )
            with pytest.raises(KeyboardInterrupt) as stopped:
                call(world, unrolled)
            patch.undo()
            reached += 1
            del stopped
            gc.collect()
            assert torch.overrides._get_current_function_mode_stack() == [mine], nth
        assert torch._C._len_torch_function_stack() == 0
        assert changed(before, snapshot(world)) == []
    assert reached == 4
