"""What every rank of a process group runs for test_distributed.py: `python ranks.py FOLDER [PART OF A NAME]`.

A case is a function of this rank and the number of them; what it asserts must hold on every rank. Four processes run
all cases, one after the other, and then two of them do. Batches are the rows of one joined batch, dealt out in order,
and what a single process makes of the joined batch is asked of `reference.chained`, which shares nothing with the
package.
"""

import copy
import importlib
import multiprocessing
import os
import sys
import time
import traceback
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import lru_cache, partial
from pathlib import Path
from unittest import mock

import pytest
import reference
import torch
import torch.distributed as dist
from optimizers import OPTIMIZERS
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel as DDP
from worlds import World, double, mlp_module, non_saturating_d, non_saturating_g, points, small_generator, softplus

from unroll_wrap import (
    Compiled,
    FiniteDifference,
    Recompute,
    Store,
    Truncate,
    UnrolledGeneratorLoss,
    diagnose,
    is_unrolling,
    predict,
    verify,
)
from unroll_wrap.unrolling.ranks import Ranks

ROWS, STEPS, EXACT, GAP = 8, 4, 1e-10, 1e-3
CASES = {}


def case(sizes=(2, 4), **options):
    """Enter a function in the table, once for each of `options`."""

    def enter(function):
        name = function.__name__.replace("_", " ")
        ways = options or {"": ()}
        for key, arguments in ways.items():
            CASES[f"{name} {key}".strip()] = (sizes, partial(function, *arguments))
        return function

    return enter


# --- worlds ---


def penalised_d(D, real, fake):
    """A Wasserstein loss with a gradient penalty halfway, which differentiates twice already in the inner loss."""
    half = ((real + fake) / 2).detach().requires_grad_()
    (slope,) = torch.autograd.grad(D(half).sum(), half, create_graph=True)
    return (D(fake) - D(real)).mean() + (slope.norm(dim=1) - 1).square().mean()


class TwoHeads(nn.Module):
    """Two ways to a logit."""

    def __init__(self):
        super().__init__()
        self.body, self.one, self.other = nn.Linear(2, 5), nn.Linear(5, 1), nn.Linear(5, 1)

    def forward(self, x):
        h = torch.tanh(self.body(x))
        return self.one(h) + 0.5 * self.other(h)


@lru_cache
def warm(optimizer, module, d_loss):
    torch.manual_seed(0)
    G, D = small_generator(), double(module())
    own = OPTIMIZERS[optimizer](D.parameters())
    World(D, own, G, points(G, rows=ROWS), d_loss, non_saturating_g).warm()
    return G, D, own


def world(optimizer="adam", module=mlp_module, d_loss=non_saturating_d):
    """The joined world after its warm-up, the same on every rank."""
    G, D, own = copy.deepcopy(warm(optimizer, module, d_loss))
    return World(D, own, G, points(G, rows=ROWS), d_loss, non_saturating_g)


def mine(batch, rank, size):
    """This rank's rows."""
    return tuple(x[rank * ROWS // size : (rank + 1) * ROWS // size] for x in batch)


def build(one, group, **options):
    options.setdefault("steps", STEPS)
    return UnrolledGeneratorLoss(
        one.discriminator, one.optimizer, one.d_loss, one.g_loss, average_gradients=group, **options
    )


def averaged(tensors, size):
    """Over the ranks, as G's DDP does it."""
    result = []
    for t in tensors:
        t = t.detach().clone()
        dist.all_reduce(t)
        result.append(t / size)
    return result


def gradient(loss, one, size):
    """This rank's loss to the value and the generator's gradient of all."""
    found = averaged([loss, *torch.autograd.grad(loss, one.inputs)], size)
    return found[0], found[1:]


@lru_cache
def joined(optimizer="adam", module=mlp_module, d_loss=non_saturating_d):
    """One process, the joined batch, one long graph."""
    one = world(optimizer, module, d_loss)
    loss = reference.chained(one.discriminator, one.optimizer, one.d_loss, one.g_loss, one.batch(), STEPS)
    return loss.detach(), reference.filled(loss, one.inputs)


def assert_same(found, expected, tolerance=EXACT):
    value, grads = found
    assert abs(value - expected[0]) <= tolerance, f"value {value.item()!r} for {expected[0].item()!r}"
    error = reference.gap(grads, expected[1])
    assert error <= tolerance, f"gradient off by {error:.1e}"


def assert_apart(found, expected):
    """A control: another gradient, told apart by the measure of `assert_same`."""
    assert reference.gap(found[1], expected[1]) > GAP


def averaged_call(one, rank, size, **options):
    return gradient(build(one, dist.group.WORLD, **options)(*mine(one.batch(), rank, size)), one, size)


# --- exactness ---

BACKWARDS = {
    "store": (Store(),),
    "recompute": (Recompute(),),
    "recompute every 2": (Recompute(every=2),),
    "recompute every 3": (Recompute(every=3),),
    "truncate at K": (Truncate(STEPS),),
    "truncate at K recompute": (Truncate(STEPS, Recompute()),),
}


@case(**BACKWARDS)
def the_joined_batch(backward, rank, size):
    assert_same(averaged_call(world(), rank, size, backward=backward), joined())


@case(compiled=())
def the_joined_batch_by(rank, size):
    one = world("sgd")
    # Inductor takes a minute to import and to compile; its two functions are made, and called, all the same.
    with mock.patch("torch._inductor.compile", lambda traced, inputs: traced):
        backward = Compiled()
        assert_same(averaged_call(one, rank, size, backward=backward), joined("sgd"))
        assert list(backward._programs.values()) != [None]


@case(sgd=("sgd", mlp_module, non_saturating_d), penalty=("adam", mlp_module, penalised_d),
      heads=("adam", TwoHeads, non_saturating_d))  # fmt: skip
def the_joined_batch_of(optimizer, module, d_loss, rank, size):
    assert_same(averaged_call(world(optimizer, module, d_loss), rank, size), joined(optimizer, module, d_loss))


@case()
def controls(rank, size):
    """Each of the two averages is needed, and the second term is."""
    one = world()
    assert_apart(gradient(build(one, False)(*mine(one.batch(), rank, size)), one, size), joined())
    with mock.patch.object(Ranks, "cotangent", lambda self, blocks: blocks):
        assert_apart(averaged_call(one, rank, size), joined())
    with mock.patch.object(Ranks, "gradients", lambda self, grads, batch: None):
        assert_apart(averaged_call(one, rank, size), joined())
    assert_apart(averaged_call(one, rank, size, stop_gradient=True), joined())


def single(one, batches=None, **options):
    """One process on the joined batch, by the package, for what the long graph does not know."""
    loss = build(one, False, resample=batches, **options)(*one.batch())
    return loss.detach(), list(torch.autograd.grad(loss, one.inputs))


def norm_clip(grads):
    length = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
    return [g * (0.1 / length).clamp(max=1) for g in grads]


OPTIONS = {
    "average": ({"average": True},),
    "average recompute": ({"average": True, "backward": Recompute(every=2)},),
    "stop gradient": ({"stop_gradient": True},),
    "truncate": ({"backward": Truncate(2)},),
    "truncate recompute": ({"backward": Truncate(3, Recompute())},),
    "clipped gradients": ({"grad_transform": norm_clip},),
    "clipped weights": ({"param_transform": lambda p: p.clamp(-0.3, 0.3)},),
    "one step": ({"steps": 1},),
    "no step": ({"steps": 0},),
}


@case(**OPTIONS)
def one_process(options, rank, size):
    one = world()
    assert_same(averaged_call(one, rank, size, **options), single(one, **options))


@case()
def finite_difference(rank, size):
    """An approximation on both sides."""
    backward = FiniteDifference(central=True)
    assert_same(averaged_call(world(), rank, size, backward=backward), joined(), tolerance=1e-6)


@case(momentum=("sgd_momentum",), amsgrad=("adam_amsgrad",), nesterov=("sgd_nesterov_all",))
def one_process_with(optimizer, rank, size):
    assert_same(averaged_call(world(optimizer), rank, size), single(world(optimizer)))


@case()
def one_process_traced(rank, size):
    """An optimizer without a rule."""

    class Signed(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p.sub_(0.1 * p.grad / (p.grad.abs() + 0.1))

    def own():
        one = world()
        one.optimizer = Signed(one.discriminator.parameters(), lr=0.1)
        return one

    assert_same(averaged_call(own(), rank, size), single(own()))


@case()
def every_step_its_own_batch(rank, size):
    one = world()
    drawn = [one.draw(k) for k in range(STEPS)]
    expected = single(one, [one.draw(k) for k in range(STEPS)])
    for backward in (Store(), Recompute()):
        found = averaged_call(one, rank, size, backward=backward, resample=lambda k: mine(one.draw(k), rank, size))
        assert_same(found, expected)
    assert_apart(averaged_call(one, rank, size), expected)
    assert len(drawn) == STEPS


@case(closure=(False,), rerun=(True,))
def losses_without_arguments(rerun, rank, size):
    """The batch captured, or the generator run again inside the losses."""
    one, batch = world(), mine(world().batch(), rank, size)
    batch = mine(one.batch(), rank, size)

    def bind(loss):
        return lambda D: loss(D, *(mine(one.batch(), rank, size) if rerun else batch))

    loss = build(one, dist.group.WORLD)(d_loss=bind(one.d_loss), g_loss=bind(one.g_loss))
    assert_same(gradient(loss, one, size), joined())


@case()
def a_head_that_only_some_ranks_use(rank, size):
    """Its gradient counts as zero on the others, as in DDP, and a parameter that nobody uses is left alone."""

    class Heads(TwoHeads):
        def __init__(self):
            super().__init__()
            self.idle = nn.Linear(1, 1)

        def forward(self, x, other=0.5):
            h = torch.tanh(self.body(x))
            return self.one(h) + (other * self.other(h) if other else 0)

    def d_loss(D, real, fake, weight):
        # A weight of 0 leaves the head out of the graph.
        return non_saturating_d(lambda x: D(x, weight), real, fake)

    def joined_d(D, real, fake):
        parts = [mine((real, fake), r, size) for r in range(size)]
        return sum(d_loss(D, *part, weight=0.0 if r else 0.7) for r, part in enumerate(parts)) / size

    def g_loss(D, real, fake, **kwargs):
        return non_saturating_g(D, real, fake)

    one = world("adam", Heads)
    for backward in (Store(), Recompute()):
        unrolled = UnrolledGeneratorLoss(
            one.discriminator, one.optimizer, d_loss, g_loss, steps=STEPS, backward=backward,
            average_gradients=dist.group.WORLD,
        )  # fmt: skip
        loss = unrolled(*mine(one.batch(), rank, size), weight=0.0 if rank else 0.7)
        whole = UnrolledGeneratorLoss(one.discriminator, one.optimizer, joined_d, non_saturating_g, steps=STEPS)
        expected = whole(*one.batch())
        assert_same(gradient(loss, one, size), (expected.detach(), torch.autograd.grad(expected, one.inputs)))


@case()
def parameters_of_two_dtypes(rank, size):
    """A bucket for each; one half is in float32, and no better than that."""

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(2, 5), nn.Linear(5, 1).to(torch.float32)

        def forward(self, x):
            return self.second(torch.tanh(self.first(x)).float()).double()

    def own():
        torch.manual_seed(0)
        G, D = small_generator(), Mixed()
        D.first.double()
        return World(D, OPTIMIZERS["sgd"](D.parameters()), G, points(G, rows=ROWS)).warm()

    assert_same(averaged_call(own(), rank, size), single(own()), tolerance=1e-6)


@case()
def statistics_of_its_own_batch(rank, size):
    """BatchNorm normalises by each rank's own rows: one process whose loss does so chunk by chunk is the same."""

    def module():
        return nn.Sequential(nn.Linear(2, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 1))

    def chunked(D, real, fake):
        return sum(non_saturating_d(D, *mine((real, fake), r, size)) for r in range(size)) / size

    def chunked_g(D, real, fake):
        return sum(non_saturating_g(D, *mine((real, fake), r, size)) for r in range(size)) / size

    one = world("adam", module)
    found = averaged_call(one, rank, size)
    whole = UnrolledGeneratorLoss(one.discriminator, one.optimizer, chunked, chunked_g, steps=STEPS)(*one.batch())
    assert_same(found, (whole.detach(), torch.autograd.grad(whole, one.inputs)))
    assert_apart(found, single(one))


@case()
def nothing_moves(rank, size):
    """Value without graph, and D and its optimizer as they were."""
    one = world()
    before = copy.deepcopy((one.discriminator.state_dict(), one.optimizer.state_dict()))
    with torch.no_grad():
        value = build(one, dist.group.WORLD)(*mine(one.batch(), rank, size))
    assert not value.requires_grad
    assert abs(averaged([value], size)[0] - joined()[0]) <= EXACT
    torch.testing.assert_close((one.discriminator.state_dict(), one.optimizer.state_dict()), before, rtol=0, atol=0)


@case()
def messages(rank, size):
    """One sum an inner step and one a step on the way back, of D's parameters and a few notes; twice a few numbers."""
    one, sizes = world(), []
    real = dist.all_reduce
    P, n = sum(p.numel() for p in one.discriminator.parameters()), len(list(one.discriminator.parameters()))

    def counted(tensor, **options):
        sizes.append(tensor.numel())
        return real(tensor, **options)

    batch = mine(one.batch(), rank, size)
    expected = {Store(): 2 * STEPS, Recompute(): 2 * STEPS, Truncate(2): STEPS + 2, Truncate(3, Recompute()): STEPS + 3}
    for backward, number in expected.items():
        sizes.clear()
        unrolled = build(one, dist.group.WORLD, backward=backward)
        with (
            mock.patch.object(dist, "all_reduce", counted),
            mock.patch.object(dist, "all_gather", side_effect=dist.all_gather) as gathers,
        ):
            unrolled(*batch)
        assert sizes == [P + n + 3] * number, (backward, sizes)
        assert gathers.call_count == 2
    sizes.clear()
    with mock.patch.object(dist, "all_reduce", counted):
        build(one, False)(*batch)
    assert not sizes


# --- wrappers ---

DDP_OPTIONS = {
    "plain": ({},),
    "unused": ({"find_unused_parameters": True},),
    "static graph": ({"static_graph": True},),
    "no broadcast": ({"broadcast_buffers": False},),
    "bucket view": ({"gradient_as_bucket_view": True},),
}


def train(one, unrolled, deal, *, iterations=3, accumulate=1, backward=torch.Tensor.backward, opt_G=None):
    """The user's loop: a step of D, and one of G over some batches. `deal` takes this process's rows."""
    D, G = one.discriminator, one.generator
    opt_G = opt_G or torch.optim.Adam(G.parameters(), lr=0.01)
    for i in range(iterations):
        one.optimizer.zero_grad()
        real, fake = deal(one.draw(i))
        on_real, on_fake = D(torch.cat([real, fake.detach()])).chunk(2)
        backward((softplus(-on_real) + softplus(on_fake)).mean())
        one.optimizer.step()
        opt_G.zero_grad()
        for j in range(accumulate):
            last = j == accumulate - 1
            with nullcontext() if last or not isinstance(G, DDP) else G.no_sync():
                backward(unrolled(*deal(one.draw(i + 5 + j))) / accumulate)
        opt_G.step()
    return [p.detach().clone() for p in (*G.parameters(), *D.parameters())]


def wrapped(wrap_D, wrap_G=DDP):
    """The joined world, its nets wrapped as a user's are; the optimizers own the same parameters."""
    one = world()
    one.discriminator, one.generator = wrap_D(one.discriminator), wrap_G(one.generator)
    one.draw = points(one.generator, rows=ROWS)
    return one


def assert_all_close(found, expected):
    assert reference.gap(found, expected) <= EXACT


@lru_cache
def trained(accumulate=1):
    one = world()
    return train(one, build(one, False), lambda batch: batch, accumulate=accumulate)


@case(**DDP_OPTIONS)
def training_in_ddp(options, rank, size):
    """N ranks are one process on the joined batch, also after several updates of both nets."""
    one = wrapped(partial(DDP, **options), partial(DDP, **options))
    unrolled = build(one, dist.group.WORLD)
    assert_all_close(train(one, unrolled, partial(mine, rank=rank, size=size)), trained())


@case()
def accumulation_under_no_sync(rank, size):
    one = wrapped(DDP)
    found = train(one, build(one, dist.group.WORLD), partial(mine, rank=rank, size=size), accumulate=3)
    assert_all_close(found, trained(3))
    assert reference.gap(found, trained()) > 1e-6


@case()
def looking_ahead_alone(rank, size):
    """The default: every rank's own unroll, averaged by G's DDP and not before; D's reducer has no part in it."""
    one = wrapped(DDP)
    unrolled = build(one, False)
    with (
        mock.patch.object(dist, "all_reduce", side_effect=AssertionError),
        mock.patch.object(dist, "all_gather", side_effect=AssertionError),
    ):
        unrolled(*mine(one.batch(), rank, size)).backward()
    found = [p.grad for p in one.generator.parameters()]
    plain = world()
    own = build(plain, False)(*mine(plain.batch(), rank, size))
    _, expected = gradient(own, plain, size)
    assert_all_close(found, expected)
    assert_apart((None, found), joined())


@case()
def ranks_that_differ_without_averaging(rank, size):
    """In K, in find_unused_parameters of D, in the loss: each looks ahead as it likes, and nobody waits."""
    one = wrapped(DDP)
    one.discriminator = DDP(one.discriminator.module, find_unused_parameters=rank == 0)
    loss = build(one, False, steps=rank, backward=Recompute() if rank else Store())(*mine(one.batch(), rank, size))
    loss.backward()
    assert len({str(p) for p in _everyone([p.grad.sum().item() for p in one.generator.parameters()])}) == 1


@case()
def no_hook_of_ds_reducer_fires(rank, size):
    """Averaged or not; the control is a real step, after which it does."""
    one = wrapped(DDP)
    calls = []

    def hook(state, bucket):
        calls.append(bucket.index())
        return dist.all_reduce(bucket.buffer() / size, async_op=True).get_future().then(lambda f: f.value()[0])

    one.discriminator.register_comm_hook(None, hook)
    for group in (False, dist.group.WORLD):
        build(one, group)(*mine(one.batch(), rank, size)).backward()
    assert not calls
    one.discriminator(torch.zeros(2, 2, dtype=torch.float64)).sum().backward()
    assert calls


@case()
def generator_called_inside_the_loss(rank, size):
    one = wrapped(DDP)

    def bind(loss):
        return lambda D: loss(D, *mine(one.batch(), rank, size))

    build(one, dist.group.WORLD)(d_loss=bind(one.d_loss), g_loss=bind(one.g_loss)).backward()
    assert_all_close([p.grad for p in one.generator.parameters()], joined()[1])


@case()
def buffers_that_ddp_broadcasts(rank, size):
    """A spectral norm's vectors: broadcast before real passes, each rank's own within the unroll, where they agree."""

    torch.manual_seed(0)
    G = small_generator()
    D = double(nn.Sequential(nn.utils.spectral_norm(nn.Linear(2, 5)), nn.Tanh(), nn.Linear(5, 1)))
    one = World(D, OPTIMIZERS["adam"](D.parameters()), G, points(G, rows=ROWS)).warm()
    expected = single(one)
    one.discriminator = DDP(one.discriminator)
    assert_same(averaged_call(one, rank, size), expected)


@case()
def the_loop_of_the_page(rank, size):
    """docs/distributed.md, on a group that is there already; G and D stay the same on all ranks."""
    page = (Path(__file__).parents[2] / "docs" / "distributed.md").read_text(encoding="utf-8")
    code = page.split("```py\n")[1].split("```")[0]
    names = {}
    with mock.patch.object(dist, "init_process_group"), mock.patch.object(dist, "destroy_process_group"):
        exec(compile(code, "distributed.md", "exec"), names)
    params = [p.detach().double() for net in (names["G"], names["D"]) for p in net.parameters()]
    assert_all_close(averaged(params, size), params)
    assert len(set(_everyone(names["real"].sum().item()))) == size


@case()
def verify_is_for_one_process(rank, size):
    one = world()
    with pytest.raises(ValueError, match="real steps of one process"):
        verify(build(one, dist.group.WORLD), *one.batch())


@case()
def diagnose_and_predict(rank, size):
    """Several calls each, made by all."""
    one = world()
    batch = mine(one.batch(), rank, size)
    assert diagnose(build(one, dist.group.WORLD), *batch).second_term > 0
    assert predict(build(one, dist.group.WORLD), *batch, steps=9).steps == 9


@lru_cache
def trained_like_the_examples(launched):
    """`alternate` on nets without BatchNorm, with the minibatch that `train_on_images` deals out."""
    from common import distributed
    from common.training import Players, alternate

    with mock.patch.object(distributed, "launched", lambda: launched):
        one = world()
        opt_G = torch.optim.Adam(one.generator.parameters(), lr=0.01)
        players = Players(one.generator, one.discriminator, opt_G, one.optimizer)
        unrolled = build(one, distributed.group())
        torch.manual_seed(1)

        def minibatch():
            real, z = torch.randn(2, ROWS, 2, dtype=torch.float64)
            return distributed.share(real), distributed.share(z)

        losses = [loss_G for _, _, loss_G in alternate(players, unrolled, minibatch, done=0, updates=3)]
    return losses[-1], [p.detach() for net in players[:2] for p in net.parameters()]


@case()
def the_loop_of_the_examples(rank, size):
    """N processes train what one does."""
    found, expected = trained_like_the_examples.__wrapped__(True), trained_like_the_examples(False)
    assert_same((averaged([found[0]], size)[0], found[1]), expected)


@case(sizes=(2,))
def accelerate(rank, size):
    """Everything prepared, as Accelerate's users have it."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == size
    one = world()
    opt_G = torch.optim.Adam(one.generator.parameters(), lr=0.01)
    one.discriminator, one.generator, one.optimizer, opt_G = accelerator.prepare(
        one.discriminator, one.generator, one.optimizer, opt_G
    )
    assert isinstance(one.discriminator, DDP)
    one.draw = points(one.generator, rows=ROWS)
    deal = partial(mine, rank=rank, size=size)
    found = train(one, build(one, dist.group.WORLD), deal, backward=accelerator.backward, opt_G=opt_G)
    assert_all_close(found, trained())


@case(sizes=(2,))
def fabric(rank, size):
    """Everything set up, as Fabric's users have it."""
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=size, strategy="ddp")
    fabric.launch()
    assert fabric.world_size == size
    one = world()
    opt_G = torch.optim.Adam(one.generator.parameters(), lr=0.01)
    one.discriminator, one.optimizer = fabric.setup(one.discriminator, one.optimizer)
    one.generator, opt_G = fabric.setup(one.generator, opt_G)
    one.draw = points(one.generator, rows=ROWS)
    deal = partial(mine, rank=rank, size=size)
    found = train(one, build(one, dist.group.WORLD), deal, backward=fabric.backward, opt_G=opt_G)
    assert_all_close(found, trained())


# On a CPU torch 2.6 cannot shard.
SHARDS = hasattr(torch.cpu.Stream, "record_event")


@case(sizes=(2, 4) if SHARDS else (), argument=(False,), rerun=(True,))
def a_sharded_generator(rerun, rank, size):
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    one = world()
    G = one.generator
    for layer in (G[0], G[2], G):
        fully_shard(layer, mesh=init_device_mesh("cpu", (size,)))
    assert all(isinstance(p, DTensor) for p in G.parameters())
    unrolled = build(one, dist.group.WORLD)
    if rerun:
        with all_raise(ValueError, "given back its parameters' memory.*fake as an argument"):
            unrolled(
                d_loss=lambda D: one.d_loss(D, *mine(one.batch(), rank, size)),
                g_loss=lambda D: one.g_loss(D, *mine(one.batch(), rank, size)),
            )
    else:
        unrolled(*mine(one.batch(), rank, size)).backward()
        assert_all_close([p.grad.full_tensor() for p in G.parameters()], joined()[1])


@case()
def a_sharded_discriminator_is_refused(rank, size):
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.distributed.optim import ZeroRedundancyOptimizer
    from torch.distributed.tensor import distribute_module

    mesh = init_device_mesh("cpu", (size,))

    def refused(wrap, match):
        one = world()
        D = wrap(one.discriminator)
        with pytest.raises(TypeError, match=match):
            UnrolledGeneratorLoss(D, torch.optim.Adam(D.parameters()), one.d_loss, one.g_loss)

    refused(lambda D: fully_shard(D, mesh=mesh), "FSDPModule, which cannot be unrolled: each process holds a piece")
    refused(lambda D: distribute_module(D, mesh), "DTensors")
    refused(lambda D: FullyShardedDataParallel(D, device_id=torch.device("cpu")), "FullyShardedDataParallel, which")
    unknown = type("Odd", (nn.Sequential,), {"__module__": "torch.distributed.odd"})
    refused(unknown, "torch.distributed.odd.Odd, of which it is not known")
    refused(lambda D: nn.Sequential(D, nn.SyncBatchNorm(1)), "SyncBatchNorm, whose backward pass cannot")
    one = world()
    shards = ZeroRedundancyOptimizer(one.discriminator.parameters(), torch.optim.Adam, lr=0.1)
    with pytest.raises(TypeError, match="ZeroRedundancyOptimizer cannot be unrolled: each process holds"):
        UnrolledGeneratorLoss(one.discriminator, shards)


# --- what goes wrong ---


def _everyone(thing):
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, thing)
    return found


@contextmanager
def all_raise(kind, match, other=None):
    """Every rank raises, none waits, and after that the group is in step again; `other` is for those not at fault."""
    began = time.monotonic()
    with pytest.raises(other[0] if other else kind, match=other[1] if other else match):
        yield
    assert time.monotonic() - began < 20
    number = dist.get_rank() + 1.0
    total = torch.tensor(number, dtype=torch.float64)
    dist.all_reduce(total)
    assert total == sum(range(dist.get_world_size() + 1))


class Broken(RuntimeError):
    pass


class RaisesBackwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return RaisesTwice.apply(g)


class RaisesTwice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        raise Broken("in the second pass")


def _raise():
    raise Broken("on the way")


def breaking_at(number):
    """A d_loss that fails at its evaluation of this number."""
    count = iter(range(1000))

    def d_loss(D, real, fake):
        if next(count) == number:
            _raise()
        return non_saturating_d(D, real, fake)

    return d_loss


def failing_second_pass(D, real, fake):
    return non_saturating_d(lambda x: RaisesBackwards.apply(D(x)), real, fake)


failing_second_pass.__qualname__ = non_saturating_d.__qualname__


def named(function):
    """What is broken on one rank has the name that it has on the others."""
    function.__qualname__ = non_saturating_d.__qualname__
    return function


FAILURES = {
    "in the first inner step": (lambda: {"d_loss": named(breaking_at(0))},),
    "in a later inner step": (lambda: {"d_loss": named(breaking_at(2))},),
    "when a step is replayed": (lambda: {"d_loss": named(breaking_at(STEPS + 1))},),
    "in the last pass back": (lambda: {"d_loss": failing_second_pass},),
    "in a schedule": (lambda: {"steps": _raise},),
    "in drawing a batch": (lambda: {"resample": lambda k: _raise()},),
}


@case(**FAILURES)
def one_rank_raises(options, rank, size):
    one = world()
    steps = 1 if options is FAILURES["in the last pass back"][0] else STEPS
    unrolled = build(one, dist.group.WORLD, backward=Recompute(), steps=steps)
    batch = mine(one.batch(), rank, size)
    at_fault = rank == size - 1
    with all_raise(Broken, "way|pass", other=None if at_fault else (RuntimeError, f"rank {size - 1} raised Broken: ")):
        unrolled(*batch, **(options() if at_fault else {}))
    # And everything still works.
    assert_same(averaged_call(one, rank, size), joined())


@case()
def one_rank_overflows(rank, size):
    """Found after the last message, when the others are done."""
    one = world()

    def g_loss(D, real, fake):
        return non_saturating_g(D, real, fake) * (float("inf") if rank == 0 else 1.0)

    g_loss.__qualname__ = non_saturating_g.__qualname__
    one.g_loss = g_loss
    with all_raise(
        ValueError, "g_loss after the inner steps is inf", other=rank and (RuntimeError, "rank 0 raised Value")
    ):
        build(one, dist.group.WORLD, stop_gradient=True)(*mine(one.batch(), rank, size))


@case()
def every_rank_raises(rank, size):
    one = world()
    with all_raise(ValueError, "Truncate"):
        build(one, dist.group.WORLD, backward=Truncate(9))(*mine(one.batch(), rank, size))


DISAGREE = {
    "K": (lambda one, rank: {"steps": 2 + rank}, "steps: 2 on rank 0, 3 on rank 1"),
    "K none": (lambda one, rank: {"steps": rank}, "steps: 0 on rank 0, 1 on rank 1"),
    "objective": (
        lambda one, rank: {"d_loss": penalised_d if rank else non_saturating_d},
        "d_loss: non_saturating_d on rank 0, penalised_d on rank 1",
    ),
    "optimizer": (
        lambda one, rank: one.optimizer.param_groups[0].update(lr=0.1 + rank) or {},
        r"same\. Adam's lr \(group 0\): 0.1 on rank 0, 1.1 on rank 1",
    ),
    "parameters": (
        lambda one, rank: one.discriminator[0].bias.data.add_(0.01 * rank) is None or {},
        "different parameters of the discriminator, which sum to .* on rank 0, .* on rank 1",
    ),
}


@case(**DISAGREE)
def ranks_disagree_on(change, match, rank, size):
    one = world()
    options = change(one, rank) or {}
    unrolled = build(one, dist.group.WORLD)
    with all_raise(ValueError, match):
        unrolled(*mine(one.batch(), rank, size), **(options if isinstance(options, dict) else {}))


@case()
def ranks_disagree_on_the_batch(rank, size):
    one = world()
    batch = one.batch()
    own = tuple(x[: 2 + rank] for x in batch)
    with all_raise(ValueError, r"the batch: \(2, 2\) float64, .* on rank 0, \(3, 2\) float64"):
        build(one, dist.group.WORLD)(*own)
    with all_raise(ValueError, "the batch"):
        build(one, dist.group.WORLD)(*(own if rank else own[1:]))


@case()
def ranks_disagree_on_a_later_batch(rank, size):
    one = world()

    def resample(k):
        return tuple(x[: 2 + (k == 2 and rank == 1)] for x in one.draw(k))

    with pytest.raises((ValueError, RuntimeError), match=r"the batch of an inner step is \(\d, 2\) float64"):
        build(one, dist.group.WORLD, resample=resample)(*mine(one.batch(), rank, size))
    assert _everyone(rank) == list(range(size))


@case()
def groups(rank, size):
    one = world()
    pair = dist.new_group([0, 1])
    if rank < 2:
        found = build(one, pair)(*mine(one.batch(), rank, 2))
        grads = [g.clone() for g in torch.autograd.grad(found, one.inputs)]
        for g in grads:
            dist.all_reduce(g, group=pair)
        assert_all_close([g / 2 for g in grads], joined()[1])
        unrolled = build(one, pair)
        dist.destroy_process_group(pair)
        with pytest.raises(RuntimeError, match="average_gradients was given is gone"):
            unrolled(*mine(one.batch(), rank, 2))
    else:
        with pytest.raises(TypeError, match="Pass a process group"):
            build(one, pair)
    with pytest.raises(TypeError, match="average_gradients is 'all'. Pass a process group"):
        build(one, "all")
    with pytest.raises(TypeError, match="average_gradients is True"):
        build(one, True)
    with pytest.raises(ValueError, match="None, as torch.distributed.group.WORLD is before init_process_group"):
        build(one, None)


def the_last_rank_ends(rank, size):
    """The others are told by the group itself, well before its timeout."""
    one = world()

    @named
    def d_loss(D, real, fake):
        if rank == size - 1 and is_unrolling():
            os._exit(0)
        return non_saturating_d(D, real, fake)

    unrolled = build(one, dist.group.WORLD)
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="process group failed in the middle of an unroll"):
        unrolled(*mine(one.batch(), rank, size), d_loss=d_loss)
    assert time.monotonic() - began < 20


def of_rank(rank, folder, only):
    """Every case on 4 ranks, and then on the first 2 of them."""
    results = {}
    for size in (4, 2):
        if rank >= size:
            break
        # As torchrun sets them; Accelerate and Fabric look here.
        os.environ |= {name: str(rank) for name in ("RANK", "LOCAL_RANK")}
        os.environ |= {name: str(size) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
        os.environ |= {"MASTER_ADDR": "localhost", "TORCHELASTIC_RUN_ID": "tests"}
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/{size}", rank=rank, world_size=size, timeout=timedelta(seconds=120)
        )
        for name, (sizes, function) in {**CASES, "the last rank ends": ((2, 4), the_last_rank_ends)}.items():
            if size not in sizes or only not in name:
                continue
            began = time.monotonic()
            # Whoever ends here has passed this one.
            results[name, size] = ("", 0.0)
            torch.save(results, folder / f"{rank}.pt")
            try:
                function(rank, size)
                problem = ""
            except BaseException:
                problem = traceback.format_exc()
            results[name, size] = (problem, time.monotonic() - began)
        torch.save(results, folder / f"{rank}.pt")
        if size > 2:
            dist.destroy_process_group()
    # Without taking the last group down, for which torch 2.6 waits for a rank that has ended.
    os._exit(0)


def main(folder, only=""):
    """Fork the ranks from one process that has imported and warmed up what they need: that is most of the work."""
    torch.set_num_threads(1)
    sys.path.append(str(Path(__file__).parents[2] / "examples"))
    for name in ("accelerate", "lightning.fabric", "torch._inductor", "common.training"):
        importlib.import_module(name)

    joined(), trained()
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=of_rank, args=(rank, folder, only)) for rank in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
