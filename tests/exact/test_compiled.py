"""Compiled(): equal to Store() where the loss can be compiled, Store() itself with one notice where it cannot."""

import copy
import dataclasses
import logging
import pickle
import random

import numpy
import pytest
import reference
import torch
from torch import nn
from torch._dynamo.utils import counters

from unroll_wrap import (
    Compiled,
    Recompute,
    SecondTermMissing,
    Store,
    Truncate,
    UnrolledGeneratorLoss,
    diagnose,
    minimax,
    non_saturating,
    predict,
)
from unroll_wrap.backward.compiled import partition


def mlp():
    return nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 1))


def conv():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.BatchNorm2d(3), nn.LeakyReLU(0.3), nn.Flatten(), nn.Linear(12, 1)
    )


def in_place():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True), nn.Flatten(), nn.Linear(12, 1)
    )


def two_convs():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(3, 2, 3, stride=2, padding=1), nn.Flatten()
    )


class World:
    """A warm discriminator, a generator's output, a batch."""

    def __init__(self, build=mlp, shape=(6, 2), adopt=lambda D: torch.optim.Adam(D.parameters(), 0.02, (0.5, 0.9))):
        torch.manual_seed(0)
        self.called = []
        self.D = build().double()
        self.optimizer = adopt(self.D)
        self.real = torch.randn(shape, dtype=torch.float64) + 1
        self.fake = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for _ in range(24):
            self.optimizer.zero_grad()
            minimax.d_loss(self.D, self.real, self.fake.detach()).backward()
            self.optimizer.step()

    def gradient(self, *losses, batch=None, **options):
        options = {"steps": 3, **options}
        unrolled = UnrolledGeneratorLoss(self.D, self.optimizer, *losses, **options)
        return self.call(unrolled, batch)

    def call(self, unrolled, batch=None, **kwargs):
        if unrolled not in self.called:
            # The first call with Compiled() takes its steps as Store() does.
            self.called.append(unrolled)
            with torch.random.fork_rng():
                unrolled(*(batch or (self.real, self.fake)), **kwargs)
        loss = unrolled(*(batch or (self.real, self.fake)), **kwargs)
        return loss.item(), torch.autograd.grad(loss, self.fake)[0]


@pytest.fixture
def notices(caplog):
    caplog.set_level(logging.WARNING, logger="unroll_wrap")
    return lambda: [r.getMessage() for r in caplog.records if r.name == "unroll_wrap"]


@pytest.fixture
def interpreted(monkeypatch):
    """The traced functions run as they are: what they compute is the same, and nothing takes a minute to compile."""
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, inputs: graph)


def assert_same(one, other):
    assert abs(one[0] - other[0]) <= 1e-12 * abs(other[0])
    assert (one[1] - other[1]).norm() <= 1e-9 * other[1].norm()


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("build", "shape"),
    [(mlp, (6, 2)), (conv, (4, 2, 4, 4)), (in_place, (4, 2, 4, 4)), (two_convs, (4, 2, 4, 4))],
    ids=["mlp", "conv", "in_place", "two_convs"],
)
def test_equal_to_store_at_every_call(build, shape, notices):
    """The second call runs what the first compiled, with D, its Adam and the batch moved on."""
    world = World(build, shape)
    compiled = UnrolledGeneratorLoss(world.D, world.optimizer, *non_saturating, steps=3, backward=Compiled())
    for _ in range(2):
        exact = world.gradient(*non_saturating)
        assert_same(world.call(compiled), exact)
        first_term = world.gradient(*non_saturating, stop_gradient=True)
        assert (first_term[1] - exact[1]).norm() > 1e-3 * exact[1].norm()
        with torch.no_grad():
            for t in (*world.D.parameters(), world.real, world.fake):
                t.add_(0.1 * torch.randn_like(t))
    assert not notices()


OPTIMIZERS = {
    "Adam with everything": lambda D: torch.optim.Adam(
        D.parameters(), 0.02, (0.5, 0.9), weight_decay=0.3, amsgrad=True, maximize=True
    ),
    "AdamW": lambda D: torch.optim.AdamW(D.parameters(), 0.02, (0.5, 0.9), weight_decay=0.3),
    "two groups": lambda D: torch.optim.Adam(
        [{"params": D[0].parameters(), "lr": 0.02}, {"params": D[2].parameters(), "lr": 0.04}], betas=(0.5, 0.9)
    ),
    # Not in closed form: the rule runs as it is.
    "momentum": lambda D: torch.optim.SGD(D.parameters(), 0.2, 0.9),
    "running mean of squares": lambda D: torch.optim.RMSprop(D.parameters(), 0.02),
}


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_rules(name, notices):
    """At every call, the learning rates moved on."""
    world = World(adopt=OPTIMIZERS[name])
    compiled = UnrolledGeneratorLoss(world.D, world.optimizer, *minimax, steps=3, backward=Compiled())
    before = None
    for _ in range(2):
        exact = world.gradient(*minimax)
        assert_same(world.call(compiled), exact)
        if before is not None:
            assert (before - exact[1]).norm() > 1e-3 * exact[1].norm()
        before = exact[1]
        for group in world.optimizer.param_groups:
            group["lr"] *= 1.5
        world.optimizer.step()
    assert len(compiled.backward._programs) == 1
    assert not notices()


class WithAHead(nn.Module):
    """Whose second head no loss uses, but which moves all the same once it has been trained."""

    def __init__(self):
        super().__init__()
        self.body, self.used, self.unused = nn.Linear(2, 5), nn.Linear(5, 1), nn.Linear(5, 1)

    def forward(self, x):
        return self.used(self.body(x).tanh())


@pytest.mark.usefixtures("interpreted")
def test_a_parameter_without_gradient(notices):
    world = World(WithAHead)
    assert_same(world.gradient(*minimax, backward=Compiled()), world.gradient(*minimax))
    assert not notices()


@pytest.mark.usefixtures("interpreted")
def test_a_generator_loss_that_does_not_reach_the_discriminator():
    world = World()
    losses = minimax.d_loss, lambda D, real, fake: fake.square().mean()
    found = []
    for backward in (Store(), Compiled()):
        with pytest.warns(SecondTermMissing):
            found.append(world.gradient(*losses, backward=backward))
    assert_same(*found)


def convolutions(graph):
    """The convolutions of a graph, those of its derivatives included."""
    return sum("convolution" in str(node.target) for node in graph.graph.nodes)


def test_a_pullback_runs_no_convolution_again(monkeypatch):
    """What convolutions have made is kept, and `predict` counts it; a small MLP computes all of a step again."""
    graphs = []
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, inputs: (graphs.append(graph), graph)[1])
    world, of_mlp = World(two_convs, (4, 2, 4, 4)), World()
    compiled = UnrolledGeneratorLoss(world.D, world.optimizer, *non_saturating, steps=3, backward=Compiled())
    world.call(compiled)
    step, pullback = graphs
    other = UnrolledGeneratorLoss(of_mlp.D, of_mlp.optimizer, *non_saturating, steps=3, backward=Compiled())
    of_mlp.call(other)
    assert other.backward.kept == 0 < compiled.backward.kept

    again = UnrolledGeneratorLoss(world.D, world.optimizer, *non_saturating, steps=3, backward=Recompute())
    world.call(again)
    mine, theirs = (predict(one, world.real, world.fake, steps=5) for one in (compiled, again))
    # A step's loss is one number more.
    assert abs(mine.bytes_per_step - theirs.bytes_per_step - compiled.backward.kept) <= world.real.itemsize
    assert mine.bytes >= theirs.bytes + 4 * compiled.backward.kept

    # The control: with nothing kept, all of the step's convolutions are in the pullback too.
    monkeypatch.setattr(partition, "_HEAVY", set())
    world.call(UnrolledGeneratorLoss(world.D, world.optimizer, *non_saturating, steps=3, backward=Compiled()))
    assert convolutions(graphs[-1]) > convolutions(pullback) > 0 < convolutions(step)


def test_against_the_oracle(monkeypatch, tmp_path):
    """The one test that compiles, and once more as another process would, which finds everything on disk."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    world = World()
    counters["inductor"].clear()
    cached = hasattr(torch._dynamo.utils, "CompileEventLogger")  # not so in torch 2.6
    value, gradient = world.gradient(*minimax, backward=Compiled())
    assert counters["inductor"]["fxgraph_cache_miss"] == 2 * cached
    again = world.gradient(*minimax, backward=Compiled())
    found = counters["inductor"]
    assert (found["fxgraph_cache_miss"], found["fxgraph_cache_hit"]) == (2 * cached, 2 * cached)
    assert again[0] == value
    assert again[1].equal(gradient)

    def real_steps():
        return reference.value(world.D, world.optimizer, *minimax, (world.real, world.fake), 3)

    assert abs(value - float(real_steps())) <= 1e-12
    for direction in reference.directions([world.fake], 2):
        slope, error = reference.central_difference(real_steps, [world.fake], direction)
        assert error < 1e-8
        assert abs(reference.along([gradient], direction) - slope) <= 1e-7


@pytest.mark.usefixtures("interpreted")
def test_average_and_transforms():
    world = World()
    options = {
        "average": True,
        "grad_transform": lambda grads: [g.clamp(-0.05, 0.05) for g in grads],
        "param_transform": lambda p: p.clamp(-0.5, 0.5),
    }
    assert_same(world.gradient(*minimax, backward=Compiled(), **options), world.gradient(*minimax, **options))


@pytest.mark.usefixtures("interpreted")
def test_a_gradient_penalty(notices):
    """Whose gradient is taken inside the loss."""

    def penalised(D, real, fake):
        x = real.detach().requires_grad_()
        (slope,) = torch.autograd.grad(D(x).tanh().sum(), x, create_graph=True)
        return minimax.d_loss(D, real, fake) + slope.square().sum()

    world = World()
    exact = world.gradient(penalised, minimax.g_loss)
    assert_same(world.gradient(penalised, minimax.g_loss, backward=Compiled()), exact)
    plain = world.gradient(*minimax)
    assert (plain[1] - exact[1]).norm() > 1e-3 * exact[1].norm()
    assert not notices()


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("options", [{"stop_gradient": True}, {"truncate": 2}], ids=str)
def test_steps_that_are_not_differentiated(options, notices, monkeypatch):
    """They are compiled too; where none is differentiated, nothing is compiled for the way back."""
    world = World()
    ran = []
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, inputs: lambda *t: (ran.append(graph), graph(*t))[1])
    n = options.pop("truncate", None)
    exact = world.gradient(*minimax, backward=Truncate(n) if n else Store(), **options)
    compiled = Truncate(n, Compiled()) if n else Compiled()
    unrolled = UnrolledGeneratorLoss(world.D, world.optimizer, *minimax, steps=3, backward=compiled, **options)
    assert_same(world.call(unrolled), exact)
    ran.clear()
    assert_same(world.call(unrolled), exact)
    # Gradient and rule are one function: three steps, then two back.
    assert len(ran) == 3 + (n or 0)
    assert not notices()
    whole = world.gradient(*minimax)
    assert (whole[1] - exact[1]).norm() > 1e-3 * whole[1].norm()


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("twice", ["real", "fake"])
def test_a_tensor_given_twice(twice, notices):
    """One tensor in two places, and then two."""
    world = World()

    def d_loss(D, real, more, fake):
        return minimax.d_loss(D, real, fake) + 0.3 * minimax.d_loss(D, 2 * more, fake.tanh())

    losses = d_loss, lambda D, real, more, fake: minimax.g_loss(D, real, fake) + minimax.g_loss(D, more.sin(), fake)
    compiled = UnrolledGeneratorLoss(world.D, world.optimizer, *losses, steps=3, backward=Compiled())
    one = getattr(world, twice)
    for more in (one, one.detach() + 1):
        batch = world.real, more, world.fake
        assert_same(world.call(compiled, batch), world.gradient(*losses, batch=batch))
    assert not notices()


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("narrow", [0, 1, 2])
def test_products_of_stacked_matrices(narrow, notices):
    """Written as sums where a dimension is narrow, which is each of the three in turn."""
    sizes = [6, 6, 6]
    sizes[narrow] = 2
    rows, inner, columns = sizes

    class Stacked(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, inner, columns))
            self.bias = nn.Parameter(torch.randn(3, 1, columns))

        def forward(self, x):
            return torch.baddbmm(self.bias, x, self.weight).tanh() + (x @ self.weight).sin()

    world = World(Stacked, (3, rows, inner))
    assert_same(world.gradient(*minimax, backward=Compiled()), world.gradient(*minimax))
    assert not notices()


@pytest.mark.usefixtures("interpreted")
def test_resampled_batches_of_other_shapes(notices):
    world = World()
    batches = [(world.real[:n], world.fake[:n]) for n in (6, 4, 6)]
    exact = world.gradient(*minimax, resample=batches)
    assert_same(world.gradient(*minimax, resample=batches, backward=Compiled()), exact)
    assert not notices()


@pytest.mark.parametrize("wrong", ["gradient", "adjoint", None])
def test_a_compiler_that_is_wrong_is_not_believed(wrong, monkeypatch, notices):
    """Both functions are compared with autograd when they are made; a right compiler causes no notice."""
    order = iter(["gradient", "adjoint"])

    def compile_wrongly(graph, inputs):
        bent = next(order) == wrong
        return lambda *tensors: [out * 1.01 if bent and out.dim() else out for out in graph(*tensors)]

    monkeypatch.setattr(torch._inductor, "compile", compile_wrongly)
    world = World()
    assert_same(world.gradient(*minimax, backward=Compiled()), world.gradient(*minimax))
    assert bool(notices()) is bool(wrong)


class Moody:
    """A loss that changes with something beside its arguments."""

    weight = 1.0

    def __call__(self, D, real, fake):
        return self.weight * minimax.d_loss(D, real, fake)


NOT_COMPILED = {
    "random numbers": lambda D, real, fake: minimax.d_loss(D, real + 0.1 * torch.randn_like(real), fake),
    "an item": lambda D, real, fake: minimax.d_loss(D, real, fake) * (2 if D(real).mean().item() > 0 else 3),
}


@pytest.mark.parametrize("name", list(NOT_COMPILED))
def test_what_cannot_be_compiled_runs_as_it_is_with_one_notice(name, notices):
    world = World()
    d_loss = NOT_COMPILED[name]
    compiled = UnrolledGeneratorLoss(world.D, world.optimizer, d_loss, minimax.g_loss, steps=3, backward=Compiled())
    for _ in range(2):
        torch.manual_seed(1)
        exact = world.gradient(d_loss, minimax.g_loss, backward=Store())
        torch.manual_seed(1)
        assert_same(world.call(compiled), exact)
    assert len(notices()) == 1


def test_a_captured_tensor_is_not_a_constant(notices):
    world = World()
    compiled = UnrolledGeneratorLoss(world.D, world.optimizer, *minimax, steps=3, backward=Compiled())
    captured = {
        "d_loss": lambda D, real: minimax.d_loss(D, real, world.fake),
        "g_loss": lambda D, real: minimax.g_loss(D, real, world.fake),
    }
    assert_same(world.call(compiled, (world.real,), **captured), world.gradient(*minimax))
    (notice,) = notices()
    assert "argument" in notice


@pytest.mark.usefixtures("interpreted")
def test_a_loss_that_changed_since_is_noticed(notices):
    world, d_loss = World(), Moody()
    compiled = UnrolledGeneratorLoss(world.D, world.optimizer, d_loss, minimax.g_loss, steps=3, backward=Compiled())
    assert_same(world.call(compiled), world.gradient(d_loss, minimax.g_loss))
    assert not notices()
    d_loss.weight = 1.5
    for _ in range(2):
        assert_same(world.call(compiled), world.gradient(d_loss, minimax.g_loss))
    (notice,) = notices()
    assert "no longer" in notice


def test_no_more_programs_than_a_few(notices):
    """A new lambda in every call would be compiled in every call."""
    world = World()
    compiled = UnrolledGeneratorLoss(world.D, world.optimizer, *minimax, steps=1, backward=Compiled())
    compiled.backward._programs.update({n: None for n in range(8)})
    world.call(compiled, d_loss=lambda D, real, fake: minimax.d_loss(D, real, fake))
    (notice,) = notices()
    assert "construction" in notice


@pytest.mark.usefixtures("interpreted")
def test_diagnose_compiles_no_more_than_the_calls_that_it_makes():
    """Both terms, and the first alone, once each; and not the next time."""
    world = World()
    compiled = UnrolledGeneratorLoss(world.D, world.optimizer, *minimax, steps=3, backward=Compiled())
    for _ in range(2):
        assert len(diagnose(compiled, world.real, world.fake).d_losses) == 3
        assert len(compiled.backward._programs) == 2


@pytest.mark.usefixtures("interpreted")
def test_hooks_that_come_and_go(notices):
    """What a hook computes with is not in the loss's value, so no check would notice that it has changed."""
    world = World()
    compiled = UnrolledGeneratorLoss(world.D, world.optimizer, *minimax, steps=3, backward=Compiled())
    plain = world.gradient(*minimax)
    assert_same(world.call(compiled), plain)
    hook = world.D[0].weight.register_hook(lambda g: 2 * g)
    hooked = world.gradient(*minimax)
    assert (hooked[1] - plain[1]).norm() > 1e-3 * plain[1].norm()
    assert_same(world.call(compiled), hooked)
    hook.remove()
    assert_same(world.call(compiled), plain)
    (notice,) = notices()
    assert "hook" in notice


@pytest.mark.usefixtures("interpreted")
def test_autocast_that_comes_and_goes(notices):
    """What is compiled outside is not run within."""
    world = World()
    world.D.float()
    world.optimizer = torch.optim.Adam(world.D.parameters(), 0.02)
    batch = world.real.float(), world.fake.detach().float().requires_grad_()
    compiled = UnrolledGeneratorLoss(world.D, world.optimizer, *minimax, steps=2, backward=Compiled())
    exact = UnrolledGeneratorLoss(world.D, world.optimizer, *minimax, steps=2)

    def gradient(unrolled):
        return torch.autograd.grad(unrolled(*batch), batch[1])[0]

    plain = gradient(exact)
    assert (gradient(compiled) - plain).norm() <= 1e-5 * plain.norm()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gradient(compiled), gradient(exact))
        assert not torch.allclose(gradient(exact), plain, rtol=1e-4)
    assert (gradient(compiled) - plain).norm() <= 1e-5 * plain.norm()
    (notice,) = notices()
    assert "autocast" in notice


def with_strides(graph, inputs):
    """Of a compiler: it refuses other strides than those that it compiled for."""
    strides = [t.stride() for t in inputs]

    def run(*tensors):
        assert [t.stride() for t in tensors] == strides
        return graph(*tensors)

    return run


@pytest.mark.parametrize("momentum", [0.9, None], ids=["momentum", "Adam"])
def test_channels_last(momentum, monkeypatch, notices):
    """Gradients come with the strides of their parameters, cotangents with those of a packed vector."""
    monkeypatch.setattr(torch._inductor, "compile", with_strides)

    def adopt(D):
        D.to(memory_format=torch.channels_last)
        return torch.optim.SGD(D.parameters(), 0.1, momentum) if momentum else torch.optim.Adam(D.parameters(), 0.02)

    world = World(conv, (4, 2, 4, 4), adopt)
    world.real = world.real.contiguous(memory_format=torch.channels_last)
    assert_same(world.gradient(*minimax, backward=Compiled()), world.gradient(*minimax))
    assert not notices()


@dataclasses.dataclass
class Weighted:
    """A loss without a hash."""

    weight: float = 1.0

    def __call__(self, D, real, fake, images=None):
        return self.weight * minimax.d_loss(D, real if images is None else real * torch.tensor(images), fake)


@pytest.mark.usefixtures("interpreted")
def test_losses_are_told_apart_by_identity(notices):
    """Also those that cannot be hashed; a method is the same whenever it is asked for."""
    world, loss = World(), Weighted()
    losses = loss, minimax.g_loss
    compiled = UnrolledGeneratorLoss(world.D, world.optimizer, *losses, steps=3, backward=Compiled())
    assert_same(world.call(compiled), world.gradient(*losses))
    for _ in range(2):
        assert_same(world.call(compiled, d_loss=loss.__call__), world.gradient(*losses))
    assert len(compiled.backward._programs) == 2
    assert not notices()


@pytest.mark.usefixtures("interpreted")
def test_arguments_that_cannot_be_compared(notices):
    """An array changes without anyone's knowing."""
    world, losses = World(), (Weighted(), lambda D, real, fake, images: minimax.g_loss(D, real, fake))
    compiled = UnrolledGeneratorLoss(world.D, world.optimizer, *losses, steps=2, backward=Compiled())
    for images in (numpy.ones(2), numpy.full(2, 2.0)):
        batch = world.real, world.fake, images
        assert_same(world.call(compiled, batch), world.gradient(*losses, steps=2, batch=batch))
    (notice,) = notices()
    assert "ndarray" in notice


@pytest.mark.usefixtures("interpreted")
def test_a_frozen_parameter(notices):
    world = World()
    world.D[0].weight.requires_grad_(False)
    world.optimizer = torch.optim.Adam([p for p in world.D.parameters() if p.requires_grad], lr=0.02)
    assert_same(world.gradient(*minimax, backward=Compiled()), world.gradient(*minimax))
    assert not notices()


@pytest.mark.usefixtures("interpreted")
def test_a_bias_that_is_not_read(notices):
    """At beta = 0 it may hold anything."""

    class Unread(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 5))

        def forward(self, x):
            nothing = torch.full((len(x), 5), float("nan"), dtype=x.dtype)
            return torch.addmm(nothing, x, self.weight, beta=0).tanh()

    world = World(Unread)
    assert_same(world.gradient(*minimax, backward=Compiled()), world.gradient(*minimax))
    assert not notices()


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_compiles_its_own(duplicate):
    """Programs belong to the modules that they were made for."""
    world = World()
    compiled = UnrolledGeneratorLoss(world.D, world.optimizer, *minimax, steps=2, backward=Compiled())
    world.call(compiled)
    one = duplicate(compiled)
    assert not one.backward._programs and compiled.backward._programs
    with torch.no_grad():
        one.discriminator[0].weight.mul_(0.5)
    exact = UnrolledGeneratorLoss(one.discriminator, one.optimizer, *minimax, steps=2)
    assert_same(world.call(one), world.call(exact))


@pytest.mark.usefixtures("interpreted")
def test_after_a_loss_that_was_not_finite(notices):
    """Once D is finite again, its loss is compiled."""
    world = World()
    compiled = UnrolledGeneratorLoss(world.D, world.optimizer, *minimax, steps=2, backward=Compiled())
    before = copy.deepcopy(world.D.state_dict())
    for _ in range(2):
        with torch.no_grad():
            world.D[0].weight.fill_(float("nan"))
        with pytest.raises(ValueError, match="nan"):
            world.call(compiled)
        world.D.load_state_dict(before)
        assert_same(world.call(compiled), world.gradient(*minimax, steps=2))
    assert [program is not None for program in compiled.backward._programs.values()] == [True]
    assert not notices()


# What compiled code would leave out, or keep as it was


class Counting:
    """A loss that keeps a count, in one of the places where one may be kept."""

    times = 0

    def __init__(self, where, world):
        self.where, self.world, self.list = where, world, [0]

    def count(self):
        if self.where == "attribute":
            self.times += 1
            return self.times
        if self.where == "list":
            self.list[0] += 1
            return self.list[0]
        if self.where == "D":
            self.world.D.times = getattr(self.world.D, "times", 0) + 1
            return self.world.D.times
        return {"python": random.random, "numpy": numpy.random.rand}[self.where]()

    def __call__(self, D, real, fake):
        return minimax.d_loss(D, real, fake) * (1 + 0.1 * self.count())


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("where", ["attribute", "list", "D", "python", "numpy"])
def test_a_loss_that_does_more_than_return(where, notices):
    """Count and random numbers go on as under Store()."""
    found = []
    for backward in (Store(), Compiled()):
        world = World()
        loss = Counting(where, world)
        random.seed(1)
        numpy.random.seed(1)
        unrolled = UnrolledGeneratorLoss(world.D, world.optimizer, loss, minimax.g_loss, steps=3, backward=backward)
        calls = [unrolled(world.real, world.fake) for _ in range(3)]
        gradients = [torch.autograd.grad(value, world.fake)[0] for value in calls]
        found.append((calls, gradients, loss.times, loss.list, random.random(), numpy.random.rand()))
    (values, gradients, *left), (expected, exact, *right) = found
    assert left == right
    assert all(abs(a - b) <= 1e-12 * abs(b) for a, b in zip(values, expected, strict=True))
    assert all((a - b).norm() <= 1e-9 * b.norm() for a, b in zip(gradients, exact, strict=True))
    assert len(notices()) == 1


READ = {
    "tolist": lambda t: t.detach().tolist(),
    "numpy": lambda t: float(t.detach().numpy()),
    "tensor": lambda t: torch.tensor(t.detach().tolist(), dtype=t.dtype),
}


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("how", list(READ))
def test_a_number_that_is_read_from_a_tensor_is_no_constant(how, notices):
    def d_loss(D, real, fake):
        return minimax.d_loss(D, real, fake) * (1 + abs(READ[how](D(real).mean())))

    world = World()
    compiled = UnrolledGeneratorLoss(world.D, world.optimizer, d_loss, minimax.g_loss, steps=3, backward=Compiled())
    for _ in range(2):
        loss = compiled(world.real, world.fake)
        found = loss.item(), torch.autograd.grad(loss, world.fake)[0]
        assert_same(found, world.gradient(d_loss, minimax.g_loss))
    (notice,) = notices()
    assert "not that of d_loss at inner step 1" in notice


class Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, by):
        ctx.by = by
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return ctx.by * grad, None


@pytest.mark.usefixtures("interpreted")
def test_a_number_that_changes_the_gradient_alone(notices):
    """The value of the loss is what it was, so a comparison of values would not tell."""
    world, loss = World(), Moody()

    def d_loss(D, real, fake):
        return minimax.d_loss(lambda x: Reversal.apply(D(x), loss.weight), real, fake)

    compiled = UnrolledGeneratorLoss(world.D, world.optimizer, d_loss, minimax.g_loss, steps=3, backward=Compiled())
    assert_same(world.call(compiled), world.gradient(d_loss, minimax.g_loss))
    assert not notices()
    loss.weight = -0.5
    assert_same(world.call(compiled), world.gradient(d_loss, minimax.g_loss))
    (notice,) = notices()
    assert "no longer" in notice


@pytest.mark.usefixtures("interpreted")
def test_a_small_penalty_in_float32_that_changes(notices):
    """It is nothing beside the loss, and Adam divides by its gradient all the same."""
    world, penalty = World(), Moody()
    world.D.float().extra = nn.Parameter(torch.zeros(5))
    world.real, world.fake = world.real.float(), world.fake.detach().float().requires_grad_()
    world.optimizer = torch.optim.Adam(world.D.parameters(), 0.02, (0.5, 0.9))

    def d_loss(D, real, fake):
        return minimax.d_loss(D, real, fake) + 1e-4 * penalty.weight * (D.extra * D[0].bias).sum()

    def g_loss(D, real, fake):
        return minimax.g_loss(D, real, fake) + (D.extra * fake.mean()).sum()

    for _ in range(24):
        world.optimizer.zero_grad()
        d_loss(world.D, world.real, world.fake.detach()).backward()
        world.optimizer.step()
    compiled = UnrolledGeneratorLoss(world.D, world.optimizer, d_loss, g_loss, steps=3, backward=Compiled())
    for penalty.weight in (1.0, -1.0):
        exact = world.gradient(d_loss, g_loss)
        found = world.call(compiled)
        assert abs(found[0] - exact[0]) <= 1e-5 * abs(exact[0])
    (notice,) = notices()
    assert "no longer" in notice


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("norm", ["BatchNorm", "spectral norm"])
def test_the_first_call_begins_with_the_buffers_as_they_were(norm, notices):
    """Where D's loss writes to them, and g_loss reads what it wrote."""
    layer = nn.Linear(2, 5) if norm == "BatchNorm" else nn.utils.parametrizations.spectral_norm(nn.Linear(2, 5))
    # Adam would magnify the rounding of a bias before BatchNorm, which has no gradient.
    world = World(
        lambda: nn.Sequential(layer, nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 1)),
        adopt=lambda D: torch.optim.SGD(D.parameters(), 0.1),
    )

    def g_loss(D, real, fake):
        D.eval()
        value = minimax.g_loss(D, real, fake)
        D.train()
        return value

    compiled = UnrolledGeneratorLoss(world.D, world.optimizer, minimax.d_loss, g_loss, steps=3, backward=Compiled())
    for _ in range(3):
        exact = world.gradient(minimax.d_loss, g_loss)
        loss = compiled(world.real, world.fake)
        assert_same((loss.item(), torch.autograd.grad(loss, world.fake)[0]), exact)
        world.real = world.real + 0.1
    assert not notices() and compiled.backward.in_use


@pytest.mark.usefixtures("interpreted")
def test_a_loss_that_clips_weights_is_refused_in_every_call():
    """As under Store(), also where the first call has compiled something before it raised."""
    world = World()

    def d_loss(D, real, fake):
        with torch.no_grad():
            for p in D.parameters():
                p.clamp_(-0.2, 0.2)
        return minimax.d_loss(D, real, fake)

    compiled = UnrolledGeneratorLoss(world.D, world.optimizer, d_loss, minimax.g_loss, steps=3, backward=Compiled())
    for _ in range(2):
        with pytest.raises(ValueError, match="writes to parameters"):
            compiled(world.real, world.fake)


@pytest.mark.usefixtures("interpreted")
def test_more_steps_than_any_call_before(notices):
    """What has been compared at one step may differ at the second."""
    world = World()

    def d_loss(D, real, fake):
        return minimax.d_loss(D, real, fake) * (1 + abs(D(real).mean().detach().tolist()))

    compiled = UnrolledGeneratorLoss(world.D, world.optimizer, d_loss, minimax.g_loss, steps=3, backward=Compiled())
    compiled(world.real, world.fake, steps=1)
    assert not notices()
    assert_same(world.call(compiled), world.gradient(d_loss, minimax.g_loss))
    assert len(notices()) == 1
