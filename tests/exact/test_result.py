"""The result is an ordinary scalar, once differentiable, whatever way the fake went in."""

import collections
import collections.abc
import dataclasses
from typing import NamedTuple

import pytest
import reference
import torch
from checks import assert_exact, assert_value, call, expect, expected_of, gradient_of, oracle, unrolled_of, warm_world
from problems import softplus
from snapshot import changed, snapshot
from torch.nn.utils.rnn import pack_padded_sequence

from unroll_wrap import UnrolledGeneratorLoss, non_saturating, verify

STEPS = 3


@pytest.mark.parametrize("mode", ["argument", "closure"])
def test_scaled_and_added_to_another_term(mode):
    """0.5 * loss + L1 has the gradients added."""
    world = warm_world()
    unrolled = unrolled_of(world, steps=STEPS)
    alone = gradient_of(call(world, unrolled, mode), world)
    real, fake = world.batch()
    l1 = gradient_of((real - fake).abs().mean(), world)
    both = 0.5 * call(world, unrolled, mode) + (real - fake).abs().mean()
    both.backward()
    for p, a, b in zip(world.inputs, alone, l1, strict=True):
        assert torch.allclose(p.grad, 0.5 * a + b, rtol=1e-13, atol=1e-15)
    assert_exact(call(world, unrolled, mode), world, expected_of("mlp", "adam", STEPS))


@pytest.mark.parametrize("mode", ["argument", "closure", "rerun"])
def test_scaled_by_a_weight_that_learns(mode):
    """GradNorm: d‖w g‖ / dw = ‖g‖ for w > 0. What the gradient itself depends on is refused, as ever."""
    world = warm_world()
    unrolled = unrolled_of(world, steps=STEPS)
    length = torch.cat([g.flatten() for g in gradient_of(call(world, unrolled, mode), world)]).norm()
    weight = torch.tensor([0.7, 0.3], dtype=torch.float64, requires_grad=True)
    real, fake = world.batch()
    found = [
        torch.cat([g.flatten() for g in torch.autograd.grad(w * loss, world.inputs, create_graph=True)]).norm()
        for w, loss in zip(weight, (call(world, unrolled, mode), (real - fake).square().mean()), strict=True)
    ]
    (by_weight,) = torch.autograd.grad(sum(found), weight, retain_graph=True)
    assert torch.allclose(by_weight[0], length, rtol=1e-12)
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        torch.autograd.grad(found[0], world.inputs)


@pytest.mark.parametrize("mode", ["argument", "closure", "rerun"])
def test_retained_and_run_backward_twice(mode):
    """retain_graph=True: the second backward adds the same gradient again."""
    world = warm_world()
    loss = call(world, unrolled_of(world, steps=STEPS), mode)
    first = gradient_of(loss, world)
    loss.backward(retain_graph=True)
    loss.backward()
    for p, g in zip(world.inputs, first, strict=True):
        assert torch.allclose(p.grad, 2 * g, rtol=1e-13, atol=0)


@pytest.mark.parametrize("mode", ["argument", "closure"])
def test_differentiated_with_respect_to_an_inner_tensor(mode):
    """VQGAN's adaptive weight: autograd.grad of the loss for a hidden activation of G, then its backward."""
    world = warm_world()
    G, draw = world.generator, world.draw
    shift = torch.zeros(6, 3, dtype=torch.float64, requires_grad=True)
    hidden = {}

    def through(i):
        real, _ = draw(i)
        torch.manual_seed(5)
        noise = torch.randn(6, 2, dtype=torch.float64)
        hidden["h"] = G[1](G[0](noise)) + shift
        return real, G[2](hidden["h"])

    world.draw, world.inputs = through, [shift]
    expected = expect(world, steps=STEPS)
    loss = call(world, unrolled_of(world, steps=STEPS), mode)
    (inner,) = torch.autograd.grad(loss, hidden["h"], retain_graph=True)
    assert_exact(loss, world, expected)
    assert torch.equal(inner, gradient_of(loss, world)[0])
    loss.backward()
    assert torch.equal(shift.grad, inner)


@pytest.mark.parametrize("second", ["grad", "backward"])
@pytest.mark.parametrize("mode", ["argument", "closure", "rerun"])
def test_differentiating_twice_raises(mode, second):
    """Never a silently missing second derivative, whatever of it is asked for."""
    world = warm_world()
    loss = call(world, unrolled_of(world, steps=STEPS), mode)
    with pytest.raises(RuntimeError) as caught:
        grads = torch.autograd.grad(loss, world.inputs, create_graph=True)
        penalty = sum(g.pow(2).sum() for g in grads)
        # allow_unused: torch's own complaint about unused inputs would pass for the package's.
        torch.autograd.grad(penalty, world.inputs, allow_unused=True) if second == "grad" else penalty.backward()
    assert "once" in str(caught.value) or "twice" in str(caught.value)


def test_plain_losses_can_be_differentiated_twice():
    """The control: the same lines on a plain loss do not raise, so it is the package that refuses."""
    world = warm_world()
    grads = torch.autograd.grad(world.g_loss(world.discriminator, *world.batch()), world.inputs, create_graph=True)
    torch.autograd.grad(sum(g.pow(2).sum() for g in grads), world.inputs, allow_unused=True)


@pytest.mark.parametrize("name", ["mlp", "r1_on_reused_real", "dropout", "frozen_at_call"])
@pytest.mark.parametrize("steps", [0, STEPS])
def test_under_no_grad_the_value_alone(name, steps):
    """No graph, the same value, nothing touched, and no complaint about a fake without gradient."""
    world = warm_world(name)
    unrolled = unrolled_of(world, steps=steps)
    before, state = snapshot(world), torch.get_rng_state()
    expected = oracle(reference.value, world, steps=steps)
    with torch.no_grad():
        loss = call(world, unrolled)
        assert not torch.is_grad_enabled()
        torch.set_rng_state(state)
        assert call(world, unrolled, "closure").item() == loss.item()
    assert not loss.requires_grad and loss.grad_fn is None
    assert_value(loss, expected)
    assert changed(before, snapshot(world)) == []


def test_argument_and_captured_together():
    """d_loss takes the fake as an argument while g_loss captures it, and the other way round, and both at once."""
    world = warm_world()
    expected, unrolled = expected_of("mlp", "adam", STEPS), unrolled_of(world, steps=STEPS)
    d_loss, g_loss = world.d_loss, world.g_loss
    real, fake = world.batch()
    assert_exact(unrolled(real, fake, g_loss=lambda D, r, f: softplus(-D(fake)).mean()), world, expected)
    assert_exact(unrolled(real, fake, d_loss=lambda D, r, f: d_loss(D, r, fake)), world, expected)
    assert_exact(
        unrolled(real, d_loss=lambda D, r: d_loss(D, r, fake), g_loss=lambda D, r: g_loss(D, r, fake)), world, expected
    )

    def half(D, r, f):
        return softplus(-D(r)).mean() + 0.5 * softplus(D(f)).mean() + 0.5 * softplus(D(fake)).mean()

    assert_exact(unrolled(real, fake, d_loss=half), world, expected)


def test_related_tensors_in_one_batch():
    """Two arguments of one graph, one argument twice, a leaf, nested containers: every path is counted once."""
    world = warm_world()
    draw = world.draw

    def with_views(i):
        real, fake = draw(i)
        return real, [fake, {"flipped": fake.flip(0) * 0.9}], fake

    def d_loss(D, real, fakes, again):
        score = softplus(D(fakes[0])) + softplus(D(fakes[1]["flipped"])) + 0.3 * softplus(D(again))
        return softplus(-D(real)).mean() + score.mean()

    def g_loss(D, real, fakes, again):
        return softplus(-D(fakes[0] + fakes[1]["flipped"])).mean() + D(again).mean()

    world.draw, world.d_loss, world.g_loss = with_views, d_loss, g_loss
    expected = expect(world, steps=STEPS)
    assert_exact(call(world, unrolled_of(world, steps=STEPS)), world, expected)
    assert_exact(call(world, unrolled_of(world, steps=STEPS), "closure"), world, expected)


@pytest.mark.parametrize("mode", ["argument", "closure"])
def test_a_leaf_as_the_fake(mode):
    """Points optimised directly, without a generator: their own gradient."""
    world = warm_world()
    real, fake = (x.detach().clone() for x in world.batch())
    fake.requires_grad_()
    world.draw, world.inputs = lambda i: (real, fake), [fake]
    expected = expect(world, steps=STEPS)
    assert_exact(call(world, unrolled_of(world, steps=STEPS), mode), world, expected)


@pytest.mark.parametrize("mode", ["argument", "closure"])
def test_two_generators_at_once(mode):
    """Gradient for everything that the losses reach: a second generator makes the real side (a translator)."""
    world = warm_world()
    other = torch.nn.Linear(2, 2, dtype=torch.float64)
    draw = world.draw
    world.draw = lambda i: (other(draw(i)[0]), draw(i)[1])
    world.inputs = [*world.generator.parameters(), *other.parameters()]
    expected = expect(world, steps=STEPS)
    assert_exact(call(world, unrolled_of(world, steps=STEPS), mode), world, expected)


def test_float32_is_the_float64_answer_to_its_accuracy():
    """The user's usual dtype: value and the fake's gradient."""
    world, single = warm_world(), warm_world()
    single.discriminator.float()
    single.optimizer.load_state_dict(single.optimizer.state_dict())  # casts the state as well
    assert single.optimizer.state[single.discriminator[0].weight]["exp_avg"].dtype == torch.float32
    results = []
    for one, dtype in ((world, torch.float64), (single, torch.float32)):
        real, fake = (x.detach().to(dtype) for x in world.batch())
        fake.requires_grad_()
        loss = unrolled_of(one, steps=STEPS)(real, fake)
        assert loss.dtype == dtype
        results.append((loss.item(), torch.autograd.grad(loss, fake)[0].double()))
    assert_value(torch.tensor(results[0][0], dtype=torch.float64), oracle(reference.value, world, steps=STEPS))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-5)
    assert reference.gap([results[1][1]], [results[0][1]]) < 1e-3
    control = oracle(reference.first_term, world, steps=STEPS)
    assert reference.gap(control, gradient_of(call(world, unrolled_of(world, steps=STEPS)), world)) > 1e-2


class Pair(NamedTuple):
    """A batch with names."""

    real: torch.Tensor
    fake: torch.Tensor


@dataclasses.dataclass
class Batch:
    """An object that nobody takes for a container."""

    real: torch.Tensor
    fake: torch.Tensor


class Named(dict):
    """A constructor of its own."""

    def __init__(self, real, fake):
        super().__init__(real=real, fake=fake)


class Listed(list):
    """The same."""

    def __init__(self, real, fake):
        super().__init__([real, fake])


def with_default(real, fake):
    found = collections.defaultdict(list)
    found.update(real=real, fake=fake)
    return found


CONTAINERS = {
    "named tuple": Pair,
    "dataclass": Batch,
    "defaultdict": with_default,
    "dict of its own": Named,
    "list of its own": Listed,
    "user dict": lambda real, fake: collections.UserDict(real=real, fake=fake),
    "deque": lambda real, fake: collections.deque([real, fake]),
}


def unpacked(batch):
    if isinstance(batch, (collections.abc.Mapping, Batch)):
        return [batch[k] if isinstance(batch, collections.abc.Mapping) else getattr(batch, k) for k in ("real", "fake")]
    return list(batch)


@pytest.mark.parametrize("container", list(CONTAINERS))
def test_a_batch_in_any_container(container):
    """Exact, and verify finds the fake in it."""
    world, expected = warm_world(), expected_of("mlp", "adam", STEPS)
    d_loss, g_loss = world.d_loss, world.g_loss
    unrolled = UnrolledGeneratorLoss(
        world.discriminator,
        world.optimizer,
        lambda D, batch: d_loss(D, *unpacked(batch)),
        lambda D, batch: g_loss(D, *unpacked(batch)),
        steps=STEPS,
    )
    batch = CONTAINERS[container](*world.batch())
    assert_exact(unrolled(batch), world, expected)
    assert type(batch) is type(CONTAINERS[container](*world.batch()))
    assert verify(unrolled, batch).passed


def test_a_packed_sequence():
    """A named tuple whose constructor takes something else: the fake as sequences of two."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.last = torch.nn.GRU(1, 3, batch_first=True), torch.nn.Linear(3, 1)

        def forward(self, x):
            return self.last(self.rnn(x)[1][-1])

    world = warm_world()
    world.discriminator = Net().double()
    world.optimizer = torch.optim.Adam(world.discriminator.parameters(), lr=0.02)
    draw = world.draw

    def packed(i):
        real, fake = draw(i)
        return tuple(pack_padded_sequence(x.unsqueeze(-1), [2] * 6, batch_first=True) for x in (real, fake))

    loss = UnrolledGeneratorLoss(world.discriminator, world.optimizer, *non_saturating, steps=STEPS)(*packed(-1))
    # The same points without packing.
    world.draw = lambda i: tuple(x.unsqueeze(-1) for x in draw(i))
    world.d_loss, world.g_loss = non_saturating
    assert_exact(loss, world, expect(world, steps=STEPS))


@pytest.mark.parametrize("which", ["real", "fake"])
def test_the_same_tensor_twice_is_one_tensor(which):
    """A loss may differentiate the output for the one by the other, as it may outside."""
    world = warm_world()
    draw = world.draw

    def d_loss(D, real, fake, again):
        x = {"real": real, "fake": fake}[which].requires_grad_()
        (slope,) = torch.autograd.grad(D(x).sum(), again, create_graph=True)
        return softplus(-D(real)).mean() + softplus(D(fake)).mean() + slope.square().sum(1).mean()

    def drawn(i):
        real, fake = draw(i)
        return real, fake, {"real": real, "fake": fake}[which]

    world.draw, world.d_loss, world.g_loss = drawn, d_loss, lambda D, real, fake, again: softplus(-D(fake)).mean()
    loss = call(world, unrolled_of(world, steps=STEPS))
    # The oracle's copies of the batch are tensors of their own.
    world.draw = draw
    world.d_loss = lambda D, real, fake: d_loss(D, real, fake, {"real": real, "fake": fake}[which])
    world.g_loss = lambda D, real, fake: softplus(-D(fake)).mean()
    assert_exact(loss, world, expect(world, steps=STEPS))
