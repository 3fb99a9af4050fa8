"""What a loss, a transform, a hook or an option begins to do after the first call is found like what they did in it.

A switch is off in the first call, which passes, and on in a later one. The control is a loss that is built anew.
"""

import random
import warnings

import numpy
import pytest
import torch
from torch import nn

from unroll_wrap import FiniteDifference, PartialDetach, Recompute, Store, UnrolledGeneratorLoss, non_saturating

pytestmark = pytest.mark.usefixtures("float64")

d_loss, g_loss = non_saturating
# After 16, 32, 64, … calls the losses are watched again.
AGAIN = 18
BACKWARDS = [Store(), Recompute(), FiniteDifference()]


class Loop:
    """D after three updates, and a batch; ``on`` is the switch."""

    def __init__(self):
        torch.manual_seed(0)
        self.on = False
        self.G, self.D = nn.Linear(3, 2), nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1))
        self.opt = torch.optim.SGD(self.D.parameters(), lr=0.3, momentum=0.9)
        self.real = torch.randn(5, 2)
        for _ in range(3):
            self.train()

    def train(self):
        self.opt.zero_grad()
        d_loss(self.D, self.real, self.fake().detach()).backward()
        self.opt.step()
        self.opt.zero_grad()

    def fake(self):
        return self.G(torch.randn(5, 3))

    def built(self, loss=d_loss, steps=3, **options):
        return UnrolledGeneratorLoss(self.D, self.opt, loss, g_loss, steps=steps, **options)


def refused(loop, unrolled, calls, match, error=ValueError):
    """Within so many calls, D trained in between, and nothing of D or of the batch has moved."""
    unrolled(loop.real, loop.fake())
    loop.on = True
    with pytest.raises(error, match=match):  # noqa: PT012
        for _ in range(calls):
            loop.train()
            before = [t.clone() for t in (*loop.D.state_dict().values(), loop.real)]
            unrolled(loop.real, loop.fake())
    assert all(map(torch.equal, before, (*loop.D.state_dict().values(), loop.real)))


@pytest.mark.parametrize("backward", BACKWARDS, ids=repr)
@pytest.mark.parametrize("way", ["data", "no_grad", "below the bound", "scaled"])
def test_a_loss_that_writes_to_weights(way, backward):
    """In a later call too, and also where it has clipped all along and the weights only now reach the bound."""
    loop = Loop()

    def writing(D, real, fake):
        bound = 0.1 if loop.on else 1e3
        for p in D.parameters() if loop.on or way == "below the bound" else ():
            if way == "no_grad":
                with torch.no_grad():
                    p.clamp_(-bound, bound)
            elif way == "scaled":
                p.data.mul_(0.5)
            else:
                p.data.clamp_(-bound, bound)
        return d_loss(D, real, fake)

    # A replay that differs is refused as such.
    match = "d_loss at inner step 1 writes to parameters of D|not replayable|not deterministic"
    refused(loop, loop.built(writing, backward=backward), 1, match, (ValueError, RuntimeError))
    with pytest.raises(ValueError, match="writes to parameters of D, of shapes"):
        loop.built(writing)(loop.real, loop.fake())


def test_clipping_at_one_step_is_exact():
    """It writes to parameters that depend on nothing yet, in every call."""
    loop = Loop()

    def clipped(D, real, fake):
        for p in D.parameters():
            p.data.clamp_(-0.2, 0.2)
        return d_loss(D, real, fake)

    unrolled, by_hand = loop.built(clipped, steps=1), loop.built(steps=1)
    for _ in range(3):
        loop.train()
        fake = loop.fake().detach().requires_grad_()
        found = torch.autograd.grad(unrolled(loop.real, fake), fake)
        with torch.no_grad():
            for p in loop.D.parameters():
                p.clamp_(-0.2, 0.2)
        expected = torch.autograd.grad(by_hand(loop.real, fake), fake)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("backward", BACKWARDS, ids=repr)
@pytest.mark.parametrize("way", ["item", "factor", "detach"])
def test_a_transform_whose_derivative_is_wrong_only_now(way, backward):
    """A norm beyond its bound, by a branch or by a factor that has been 1 so far."""
    loop = Loop()
    bounds = {False: 1e3, True: 1e-3}

    def of_gradients(grads):
        norm = torch.stack([g.norm() for g in grads]).norm()
        if way == "factor":
            return [g * min(1.0, bounds[loop.on] / norm.item()) for g in grads]
        return [g * (bounds[loop.on] / norm.item()) for g in grads] if norm > bounds[loop.on] else grads

    def of_parameter(p):
        return p * (0.5 / p.detach().norm()) if loop.on else p

    options = {"param_transform": of_parameter} if way == "detach" else {"grad_transform": of_gradients}
    refused(loop, loop.built(backward=backward, **options), 1, "whose derivative is not the one that autograd finds")


def test_a_transform_with_a_derivative_is_compared_once_for_each_way(monkeypatch):
    """The price of the test above: neither a branch that is known nor a later call costs a comparison."""
    loop, compared = Loop(), []
    name = "unroll_wrap.optimizers.transforms.check_derivative"
    monkeypatch.setattr(name, lambda *given: compared.append(given[0]))

    def clip(grads):
        norm = torch.stack([g.norm() for g in grads]).norm()
        return [g / norm for g in grads] if loop.on else grads

    unrolled = loop.built(grad_transform=clip)
    counts = []
    for loop.on in (False, False, True, True, False):
        unrolled(loop.real, loop.fake())
        counts.append(len(compared))
    # The first step, in which D's parameters do not count, and the others.
    assert counts == [2, 2, 4, 4, 4]


def test_a_schedule_that_begins_with_one_step():
    """What exists from the second step on is not in a first call with K = 1."""
    loop = Loop()

    def decayed(grads):
        return [g + 0.1 * p.detach() for g, p in zip(grads, loop.D.parameters(), strict=True)]

    unrolled = loop.built(grad_transform=decayed)
    unrolled(loop.real, loop.fake(), steps=1)
    with pytest.raises(ValueError, match="whose derivative is not"):
        unrolled(loop.real, loop.fake(), steps=3)


def test_a_buffer_that_resample_fills_again_from_the_second_step_on():
    loop, buffer = Loop(), torch.zeros(5, 2)

    def resample(k):
        numpy.copyto(buffer.numpy(), numpy.full((5, 2), 1.0 + k))
        return buffer, loop.fake()

    unrolled = loop.built(resample=resample)
    unrolled(loop.real, loop.fake(), steps=1)
    with pytest.raises(ValueError, match="of an earlier batch"):
        unrolled(loop.real, loop.fake(), steps=3)


@pytest.mark.parametrize("layout", [torch.strided, torch.sparse_coo])
def test_a_batch_for_each_step_that_is_sparse_or_lacks_values(layout):
    """In the first call, which looks for batches that are filled again."""
    loop = Loop()

    def resample(k):
        real = torch.full((5, 2), 1.0 + k)
        real[0] = float("nan") if layout is torch.strided else 0.0
        return real.to_sparse() if layout is not torch.strided else real, loop.fake()

    def filled(D, real, fake):
        return d_loss(D, (real.to_dense() if real.is_sparse else real).nan_to_num(), fake)

    assert loop.built(filled, resample=resample)(loop.real, loop.fake(), steps=3).isfinite()


@pytest.mark.parametrize("how", ["stop_gradient", "closure", "third step"])
def test_a_detached_part_is_told(how):
    """By the first call in which it matters, whatever was the same in earlier ones."""
    loop, k = Loop(), [0]

    def wrapped(inner):
        return lambda D, real, fake: inner(D, real, fake)

    def detaching(D, real, fake):
        k[0] += 1
        part = D(fake).detach() if how != "third step" or k[0] == 3 else D(fake)
        return d_loss(D, real, fake) + (part * D(real)).mean()

    unrolled = loop.built(wrapped(detaching), stop_gradient=how == "stop_gradient")
    if how == "closure":
        unrolled.player_loss = wrapped(d_loss)
    if how != "third step":
        unrolled(loop.real, loop.fake())
    unrolled.stop_gradient, unrolled.player_loss = False, wrapped(detaching)
    with pytest.warns(PartialDetach):
        unrolled(loop.real, loop.fake())


def test_a_hook_that_comes_later():
    loop = Loop()
    unrolled = loop.built()
    unrolled(loop.real, loop.fake())
    loop.D[0].weight.register_hook(lambda g: g / (g.norm().item() + 0.1))
    with pytest.raises(ValueError, match="A gradient hook on a parameter of D returns"):
        unrolled(loop.real, loop.fake())


@pytest.mark.parametrize("added", [False, True], ids=["frozen", "added to the optimizer"])
def test_a_hook_on_the_node_that_accumulates(added):
    """Of a D that is frozen for the generator's step, as in most loops, and of a parameter that joins later."""
    loop = Loop()
    extra = nn.Parameter(torch.ones(1))
    parameter = extra if added else loop.D[0].weight
    node = torch.autograd.graph.get_gradient_edge(parameter).node
    handle = node.register_prehook(lambda grads: tuple(g / 2 for g in grads))
    loop.D.register_parameter("extra", extra)
    if not added:
        loop.D.requires_grad_(False)
    unrolled = loop.built(lambda D, real, fake: d_loss(D, real * D.extra, fake))
    if added:
        unrolled(loop.real, loop.fake())
        loop.opt.add_param_group({"params": [extra]})
    with pytest.raises(ValueError, match="has a hook on its AccumulateGrad node"):
        unrolled(loop.real, loop.fake())
    assert all(p.requires_grad is added for p in loop.D.parameters())
    handle.remove()
    unrolled(loop.real, loop.fake())


READS = {
    "gradient": (lambda loop: loop.D[0].weight.grad, "reads .grad of a parameter of D"),
    "state": (lambda loop: loop.opt.state[loop.D[0].weight]["momentum_buffer"], "reads the state of D's optimizer"),
}


@pytest.mark.parametrize("what", READS)
def test_what_a_loss_begins_to_read(what):
    """It is not found at once, but when the losses are watched again."""
    loop = Loop()
    read, match = READS[what]

    def reading(D, real, fake):
        found = read(loop) if loop.on else None
        return d_loss(D, real, fake) + (0 if found is None else found.sum() * D(real).mean())

    refused(loop, loop.built(reading), AGAIN, match)
    assert len(loop.opt.state) == 4


@pytest.mark.parametrize("backward", BACKWARDS, ids=repr)
@pytest.mark.parametrize("way", ["add_", "data", "numpy"])
@pytest.mark.parametrize("first", [False, True], ids=["later", "first call"])
def test_a_batch_that_is_changed_in_place(way, first, backward):
    """It is refused by name, and has its values back."""
    loop = Loop()
    ways = {
        "add_": lambda real: real.add_(0.1),
        "data": lambda real: real.data.add_(0.1),
        "numpy": lambda real: numpy.add(real.numpy(), 0.1, out=real.numpy()),
    }

    def noisy(D, real, fake):
        if loop.on:
            ways[way](real)
        return d_loss(D, real, fake)

    unrolled = loop.built(noisy, backward=backward)
    if not first:
        unrolled(loop.real, loop.fake())
    loop.on, before = True, loop.real.clone()
    # A replay that differs is refused as such.
    match = "changes a tensor of the batch in place|not replayable|not deterministic"
    with pytest.raises((ValueError, RuntimeError), match=match):
        unrolled(loop.real, loop.fake())
    assert torch.equal(loop.real, before)


def test_a_batch_in_the_memory_of_d():
    loop = Loop()
    unrolled = loop.built(lambda D, real, fake, near: d_loss(D, real, fake) + (near.mean() - D[0].weight.mean()) ** 2)
    unrolled = UnrolledGeneratorLoss(
        loop.D, loop.opt, unrolled.player_loss, lambda D, real, fake, near: g_loss(D, real, fake), steps=3
    )
    unrolled(loop.real, loop.fake(), loop.D[0].weight.detach().clone())
    with pytest.raises(ValueError, match="lies in the memory of a tensor of D"):
        unrolled(loop.real, loop.fake(), loop.D[0].weight.detach())


@pytest.mark.parametrize("where", ["loss", "package"])
def test_random_numbers_stay_undrawn_after_an_error(where):
    """Those of torch, numpy and Python; the control is a call without an error, which draws."""
    loop = Loop()

    def drawing(D, real, fake):
        noise = torch.randn(()) + numpy.random.rand() + random.random()
        if loop.on and where == "loss":
            raise RuntimeError("of the user's")
        if loop.on:
            real.add_(1.0)
        return d_loss(D, real + noise, fake)

    def state():
        return torch.get_rng_state().tolist(), numpy.random.get_state()[1].tolist(), random.getstate()

    unrolled, fake = loop.built(drawing), loop.fake()
    before = state()
    unrolled(loop.real, fake)
    after = state()
    assert all(one != other for one, other in zip(before[::2], after[::2], strict=True))
    loop.on = True
    with pytest.raises((RuntimeError, ValueError), match="of the user's|in place"):
        unrolled(loop.real, fake)
    assert state() == after


@pytest.mark.parametrize("part", ["another part", "the same part"])
@pytest.mark.parametrize("array", [False, True])
def test_a_batch_beside_d_in_one_memory(array, part):
    """Slices of one data set, one of them a buffer of D's; only what overlaps with it is refused.

    Slices of a numpy array have storages of their own.
    """
    loop, data = Loop(), torch.randn(30, 2)

    def rows(start, end):
        return torch.from_numpy(data.numpy()[start:end]) if array else data[start:end]

    loop.D.register_buffer("seen", rows(0, 5))
    unrolled = loop.built(lambda D, real, fake: d_loss(D, real + D.seen.mean(), fake))
    if part == "another part":
        for k in (1, 2):
            unrolled(rows(5 * k, 5 * k + 5), loop.fake())
    else:
        with pytest.raises(ValueError, match="lies in the memory of a tensor of D"):
            unrolled(rows(4, 9), loop.fake())


def test_a_transform_that_turns_gradients_off():
    """With the same operators, it is another way."""
    loop = Loop()

    def halved(grads):
        with torch.set_grad_enabled(not loop.on and torch.is_grad_enabled()):
            return [0.5 * g for g in grads]

    refused(loop, loop.built(grad_transform=halved), 1, "whose derivative is not the one that autograd finds")


@pytest.mark.parametrize("kind", ["read-only", "expanded"])
def test_a_batch_that_cannot_be_written_to(kind):
    """It has its values still, so an error reaches the user as it is."""
    loop = Loop()
    array = numpy.ones((5, 2))
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        real = torch.from_numpy(array) if kind == "read-only" else torch.ones(1, 2).expand(5, 2)

    def failing(D, real, fake):
        if loop.on:
            raise RuntimeError("of the user's")
        return d_loss(D, real, fake)

    unrolled = loop.built(failing)
    unrolled(real, loop.fake())
    loop.on = True
    with pytest.raises(RuntimeError, match="of the user's"):
        unrolled(real, loop.fake())
