"""What decides on an accelerator and can be counted anywhere: operator calls of a step, and waits for the device."""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from unroll_wrap import FiniteDifference, Recompute, Store, Truncate, UnrolledGeneratorLoss, torch_private
from unroll_wrap.optimizers import read as read_of
from unroll_wrap.unrolling import unroll

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


@pytest.fixture
def benchmarks(monkeypatch):
    """The counter and the nets that ``benchmarks/step_cost.py`` measures with."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    before = set(sys.modules)
    import launches
    import nets

    yield launches, nets
    for name in set(sys.modules) - before:
        if BENCHMARKS in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def unrolled_by(backward=None, **options):
    def contender(setup, steps):
        options.update({"backward": backward} if backward else {})
        unrolled = UnrolledGeneratorLoss(setup.D, setup.optimizer, *setup.problem.objective, steps=steps, **options)
        return lambda: torch.autograd.grad(unrolled(setup.real, setup.fake), setup.fake)

    return contender


def small(nets, name, **options):
    problem = nets.NETS[name]
    return nets.set_up(replace(problem, shape=(8, *problem.shape[1:])), warm_up=2, **options)


# The stacked nets have theirs from what few channels on a CPU need.
@pytest.mark.parametrize(("net", "at_most"), [("ring", 90), ("cifar10", 300), ("stacked", 360)])
def test_operator_calls_of_a_step(benchmarks, net, at_most, monkeypatch):
    launches, nets = benchmarks
    assert launches.per_step(unrolled_by(Store()), small(nets, net))[0] <= at_most
    assert launches.per_step(unrolled_by(stop_gradient=True), small(nets, net))[0] <= at_most / 2
    # The control: by autograd they are more.
    monkeypatch.setattr(unroll, "adjoint", lambda *_: None)
    assert launches.per_step(unrolled_by(Store()), small(nets, net))[0] > at_most


def test_the_counter_counts_what_works(benchmarks):
    launches, _ = benchmarks
    x = torch.randn(3, 4)
    assert launches.count(lambda: x.view(4, 3).t().detach()[0].expand(2, 4).unsqueeze(0)).work.total() == 0
    assert launches.count(lambda: torch.empty(3).shape).work.total() == 0
    assert launches.count(lambda: (x + 1).sum().neg()).work == {"add": 1, "sum": 1, "neg": 1}


READING = {
    "item": lambda x: x.item(),
    "float": float,
    "bool": lambda x: bool(x > 0),
    "tolist": lambda x: x.tolist(),
    "equal": lambda x: torch.equal(x, x + 1),
    "allclose": lambda x: torch.allclose(x, x),
    "numpy": lambda x: x.numpy(),
}


@pytest.mark.parametrize("name", READING)
def test_the_counter_sees_every_way_to_read_a_number(benchmarks, name):
    launches, _ = benchmarks
    assert launches.count(lambda: READING[name](torch.ones(()))).reads >= 1


WAYS = {
    "Store": {},
    "Truncate": {"backward": Truncate(2)},
    "stop_gradient": {"stop_gradient": True},
    "average": {"average": True},
    "Recompute": {"backward": Recompute()},
    "Recompute by segments": {"backward": Recompute(every=2)},
}


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "fused Adam"])
@pytest.mark.parametrize("name", WAYS)
def test_a_call_waits_for_the_device_once(benchmarks, name, optimizer):
    """At its end, for all checks of numbers; once more for the step counts of all parameters where these are tensors.

    ``Recompute`` looks once more whether its steps were the same.
    """
    launches, nets = benchmarks
    make = torch.optim.SGD if optimizer == "SGD" else partial(torch.optim.Adam, fused=optimizer == "fused Adam")
    setup = small(nets, "stacked", optimizer=partial(make, lr=1e-3))
    counted = [launches.count(unrolled_by(**WAYS[name])(setup, k)).reads for k in (2, 5)]
    assert counted == [1 + (optimizer != "SGD") + ("Recompute" in name)] * 2


def test_steps_are_counted_together(benchmarks, monkeypatch):
    """The control: one by one they are one wait for each parameter, and what is read is right."""
    launches, nets = benchmarks
    setup = small(nets, "ring")
    steps = [float(setup.optimizer.state[p]["step"]) for p in setup.params()]
    assert [float(b.state.step) for b in read_of.read([setup.optimizer], setup.params())] == steps[:1]
    setup.optimizer.state[setup.params()[2]]["step"] += 5
    found = {i: b.state.step for b in read_of.read([setup.optimizer], setup.params()) for i in b.index}
    assert [found[i] for i in range(4)] == [float(setup.optimizer.state[p]["step"]) for p in setup.params()]
    monkeypatch.setattr(read_of, "counts_of", lambda *_: {})
    assert launches.count(unrolled_by()(setup, 2)).reads == 1 + 4


def test_differences_read_numbers(benchmarks):
    """The control of the tests above: how wide a difference is has to be known in Python, and whether it tells."""
    launches, nets = benchmarks
    # One more each time that a difference is made longer.
    assert 2 <= launches.per_step(unrolled_by(FiniteDifference()), small(nets, "ring"))[1] < 4
    assert launches.per_step(unrolled_by(FiniteDifference(eps=1e-4)), small(nets, "ring"))[1] == 1


class WritingOut(TorchFunctionMode):
    """Counts the tensors that are written out, for which all of their numbers are read."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.Tensor.__repr__
        return func(*args, **(kwargs or {}))


def test_versions_are_set_without_writing_tensors_out():
    """The control: torch's error does so, where it is called in the form of its other versions."""
    tensors = torch.ones(2), torch.ones(3)
    with WritingOut() as written:
        torch_private.put_versions(tensors, [7, 9])
        assert written.count == 0
        with pytest.raises(TypeError, match="incompatible function arguments"):
            torch_private._set_versions(*((tensors[0], 1) if torch_private._LISTS else (tensors, (1, 2))))
        assert written.count > 0
    assert [t._version for t in tensors] == [7, 9]


def test_a_loss_that_reads_is_not_ours(benchmarks):
    launches, nets = benchmarks
    setup = small(nets, "ring")
    d_loss, g_loss = setup.problem.objective

    def reading(D: nn.Module, real, fake):
        loss = d_loss(D, real, fake)
        return loss * (1.0 if loss.item() else 2.0)

    unrolled = UnrolledGeneratorLoss(setup.D, setup.optimizer, reading, g_loss, steps=3)
    assert launches.count(lambda: unrolled(setup.real, setup.fake)).reads == 2 + 3
