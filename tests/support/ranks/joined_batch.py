"""What N ranks unroll is what one process unrolls on the joined batch: backwards, losses, options, messages."""

import copy
from unittest import mock

import torch
import torch.distributed as dist
from optimizers import OPTIMIZERS
from torch import nn
from worlds import World, mlp_module, non_saturating_d, non_saturating_g, points, small_generator

from unroll_wrap import (
    Compiled,
    FiniteDifference,
    Recompute,
    Store,
    Truncate,
    UnrolledGeneratorLoss,
)
from unroll_wrap.unrolling.ranks import Ranks

from .table import (
    EXACT,
    ROWS,
    STEPS,
    TwoHeads,
    assert_apart,
    assert_same,
    averaged,
    averaged_call,
    build,
    case,
    gradient,
    joined,
    mine,
    penalised_d,
    single,
    world,
)

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
        for _ in range(2):
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
