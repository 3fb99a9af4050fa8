"""predict: memory at a K that was never run, against torch's own profiler at that K."""

import array
import itertools
import random
import sys

import numpy
import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from unroll_wrap import FiniteDifference, Recompute, Store, Truncate, UnrolledGeneratorLoss, non_saturating, predict
from unroll_wrap.diagnostics.peak_memory import PeakMemory

BACKWARDS = [Store(), Recompute(), Recompute(every=2), Truncate(2), FiniteDifference()]
STEPS = 8


# Python's object of a storage lives as long as weak references there, which a first call keeps.
COUNTS_WEAK_REFERENCES = torch.__version__.startswith("2.6")


def net(hidden=256):
    torch.manual_seed(0)
    D = nn.Sequential(nn.Linear(32, hidden), nn.Tanh(), nn.Linear(hidden, 1))
    unrolled, real = UnrolledGeneratorLoss(D, torch.optim.Adam(D.parameters()), *non_saturating), torch.randn(128, 32)
    if COUNTS_WEAK_REFERENCES:
        unrolled(real, torch.randn(128, 32, requires_grad=True))
    return unrolled, real


def profiled(function):
    """The peak by the allocator's own events, which share nothing with the package's count."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
        function()
    now = peak = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


@pytest.mark.parametrize("backward", BACKWARDS, ids=repr)
def test_memory_is_what_the_allocator_says(backward):
    unrolled, real = net()
    unrolled.backward = backward
    fake = torch.randn(128, 32, requires_grad=True)
    found = predict(unrolled, real, fake, steps=STEPS)
    assert max(found.measured) < STEPS
    # A first call keeps copies of the batch, and under a profiler real steps prove it: memory that is not the unroll's.
    unrolled.prove = False
    unrolled(real, fake)
    measured = [
        profiled(lambda k=k: torch.autograd.grad(unrolled(real, fake, steps=k), fake)) for k in (STEPS, STEPS + 2)
    ]
    # The state of torch's generator is no operator's result: 5056 bytes for each step that is to be replayed.
    assert found.bytes == pytest.approx(measured[0], rel=0.05)
    assert found.bytes_per_step == pytest.approx((measured[1] - measured[0]) / 2, rel=0.02, abs=5056)
    # The control: a constant does not pass for a prediction, unless nothing grows.
    if isinstance(backward, Store):
        assert found.bytes_per_step * 4 > 0.3 * measured[0]


def test_recompute_grows_by_the_state_alone_and_store_by_activations_too():
    unrolled, real = net()
    fake = torch.randn(128, 32, requires_grad=True)
    state = sum(3 * p.numel() * p.element_size() for p in unrolled.discriminator.parameters())
    grows = {}
    for backward in (Store(), Recompute()):
        unrolled.backward = backward
        grows[type(backward)] = predict(unrolled, real, fake, steps=50).bytes_per_step
    assert state <= grows[Recompute] < 1.1 * state
    assert grows[Store] > 3 * state


def test_nothing_of_the_users_moves_and_the_report_names_both():
    unrolled, real = net()
    fake = torch.randn(128, 32, requires_grad=True)
    before, drawn = [p.clone() for p in unrolled.discriminator.parameters()], torch.get_rng_state()
    found = predict(unrolled, real, fake, steps=100)
    assert all(map(torch.equal, before, unrolled.discriminator.parameters()))
    assert torch.equal(drawn, torch.get_rng_state()) and fake.grad is None and not unrolled.optimizer.state
    assert found.steps == 100 and found.measured == (1, 2)
    assert "K = 100" in str(found) and "MB" in str(found)


def test_a_generator_that_the_losses_run_is_left_alone():
    """Its statistics, and what numpy and Python draw."""
    unrolled, real = net()
    G = nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32))

    def with_fake(loss):
        def run(D, real):
            return loss(D, real + random.random() + numpy.random.rand(), G(torch.randn(128, 4)))

        return run

    losses = {"d_loss": with_fake(non_saturating.d_loss), "g_loss": with_fake(non_saturating.g_loss)}
    before = [b.clone() for b in G.buffers()], random.getstate(), numpy.random.get_state()[1].tolist()
    predict(unrolled, real, steps=9, wrt=list(G.parameters()), **losses)
    assert all(map(torch.equal, before[0], G.buffers()))
    assert (random.getstate(), numpy.random.get_state()[1].tolist()) == before[1:]


def test_a_detached_batch_is_named():
    unrolled, real = net()
    with pytest.raises(ValueError, match="Nothing requires grad"):
        predict(unrolled, real, torch.randn(128, 32), steps=5)


@pytest.mark.parametrize("times", [(0.9, 0.3), (0.1, 5.0), (0.2, 0.2), (0.2, 0.3)])
@pytest.mark.parametrize("steps", [0, 1, 2, 100])
def test_no_time_is_negative_whatever_else_runs(times, steps, monkeypatch):
    """Times of a machine with others on it; the control is the last, which is taken as it is."""
    unrolled, real = net()
    found = itertools.chain(times, itertools.repeat(0.05))
    module = sys.modules["unroll_wrap.diagnostics.predict"]
    seconds = module._seconds
    monkeypatch.setattr(module, "_seconds", lambda *given: (seconds(*given), next(found))[1])
    monkeypatch.setattr(module, "_SHARE", 1.0)
    prediction = predict(unrolled, real, torch.randn(128, 32, requires_grad=True), steps=steps)
    assert prediction.seconds >= 0 and prediction.seconds_per_step > 0 and prediction.bytes >= 0
    if times == (0.2, 0.3):
        assert prediction.seconds == pytest.approx(0.2 + (steps - 1) * 0.1)
        assert prediction.seconds_at_zero == 0.05
        times_as_long = {0: "2.0", 1: "4.0", 2: "6.0", 100: "202.0"}[steps]
        assert f"K = {steps} takes {times_as_long} times as long" in str(prediction)


def evaluations(backward, **options):
    """How often predict evaluates d_loss."""
    unrolled, real = net()
    unrolled.backward = backward
    d_loss, count = unrolled.d_loss, itertools.count()
    unrolled.d_loss = lambda *batch: (next(count), d_loss(*batch))[1]
    fake = torch.randn(128, 32, requires_grad=True)
    found = predict(unrolled, real, fake, steps=50, **options)
    done = next(count)
    for k in found.measured:
        torch.autograd.grad(unrolled(real, fake, steps=k, **options), fake)
    return found, done, next(count) - done - 1


@pytest.mark.parametrize("backward", BACKWARDS, ids=repr)
@pytest.mark.parametrize(("share", "runs"), [(1.0, 1), (0.0, 2)])
def test_what_it_costs(backward, share, runs, monkeypatch):
    """Each of two short calls runs once, and once more where counting takes long; that is three steps at first."""
    monkeypatch.setattr(sys.modules["unroll_wrap.diagnostics.predict"], "_SHARE", share)
    found, done, of_calls = evaluations(backward)
    assert done == runs * of_calls
    if backward in (Store(), Recompute(), FiniteDifference()):
        assert found.measured == (1, 2)
    if backward == Store():
        assert done == runs * 3


def test_batches_of_their_own():
    """What is drawn for the inner steps is what they get, and the first two of them are enough."""
    # A list would be put back, because a loss that keeps one is left as it was.
    seen = array.array("d")
    unrolled, _ = net()
    d_loss = unrolled.d_loss
    unrolled.d_loss = lambda D, real, fake: (seen.append(real.sum().item()), d_loss(D, real, fake))[1]
    fake = torch.randn(128, 32, requires_grad=True)
    batches = [(torch.randn(128, 32), fake) for _ in range(2)]
    predict(unrolled, batches[0][0], fake, resample=lambda k: batches[k], steps=50)
    assert list(seen[:3]) == [batches[k][0].sum().item() for k in (0, 0, 1)]


def test_memory_is_looked_up_and_not_joined(monkeypatch):
    """For each tensor two look-ups, however many are alive; the control counts what joining them would touch."""
    touched = []

    class Counting(dict):
        def keys(self):
            touched.append(len(self))
            return super().keys()

        def __iter__(self):
            touched.append(len(self))
            return super().__iter__()

    with PeakMemory() as memory:
        memory._alive = Counting()
        kept = [torch.zeros(10) for _ in range(100)]
    assert memory.peak == 100 * 40 and len(kept) == 100 and touched == []
    assert set(memory._alive.keys()) and touched
