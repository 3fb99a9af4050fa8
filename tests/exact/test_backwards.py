"""Recompute is Store's gradient with one step's activations; Truncate(n) holds the point K - n steps on constant."""

import itertools
from contextlib import nullcontext

import pytest
import reference
import torch
from checks import (
    MODES,
    Expected,
    assert_exact,
    assert_exact_in,
    call,
    computed_once,
    distance,
    expect,
    expected_of,
    gradient_of,
    oracle,
    unrolled_of,
    warm_world,
)
from problems import PROBLEMS
from snapshot import changed, snapshot

from unroll_wrap import (
    FiniteDifference,
    Recompute,
    Store,
    Truncate,
    UnrolledGeneratorLoss,
    is_unrolling,
    non_saturating,
)
from unroll_wrap.live.random_state import RandomState
from unroll_wrap.optimizers.update import Update

EXACT = {"every step": Recompute(), "every second": Recompute(every=2), "more than there are": Recompute(every=7)}
EVERY = [*EXACT.values(), Store(), Truncate(2), Truncate(2, Recompute()), FiniteDifference()]


@pytest.mark.parametrize("name", list(PROBLEMS))
def test_recompute_is_exact_on_every_problem(name):
    """The same bounds as for Store in test_exact.py, however the call is written."""
    expected, world = expected_of(name, "adam", 3), warm_world(name)
    unrolled = unrolled_of(world, steps=3, backward=Recompute())
    assert_exact_in(world.modes, world, unrolled, expected, gap=PROBLEMS[name].gap)


def test_a_loss_that_counts_is_not_replayable():
    """What D counts is put back before a replay, and what a loss counts for itself is not."""
    world, count = warm_world(), itertools.count()
    d_loss = world.d_loss
    with pytest.raises(RuntimeError, match="not replayable"):
        call(
            world,
            unrolled_of(world, steps=3, backward=Recompute()),
            d_loss=lambda *batch: d_loss(*batch) * (1 + next(count)),
        )


class Scaled(torch.autograd.Function):
    """x, whose gradient is scaled, as a reversal layer's is by a strength that grows from call to call."""

    @staticmethod
    def forward(ctx, x, scale):
        ctx.scale = scale
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.scale, None


@pytest.mark.parametrize("backward", [Recompute(), Recompute(3), FiniteDifference()], ids=repr)
@pytest.mark.parametrize("grows", [True, False])
def test_a_loss_whose_gradient_alone_counts(backward, grows):
    """Its value is the same every time; the control has a constant strength."""
    world, count = warm_world(), itertools.count(1)
    d_loss = world.d_loss

    def reversing(D, real, fake):
        return d_loss(D, real, fake) + Scaled.apply(D(fake).mean(), -0.1 * (next(count) if grows else 1))

    message = "[Tt]he length of the gradients of d_loss.*(not replayable|not deterministic)"
    with pytest.raises(RuntimeError, match=message) if grows else nullcontext():
        call(world, unrolled_of(world, steps=3, backward=backward), d_loss=reversing)


@pytest.mark.parametrize("backward", EXACT.values(), ids=EXACT)
@pytest.mark.parametrize(
    "name", ["dropout", "batchnorm_two_batches", "plain_buffer", "wgan_gp", "spectral_norm_legacy"]
)
def test_recompute_is_store_to_the_last_bit(name, backward):
    """Masks, penalties' random points and buffers are those of the first time; nor do the draws that follow move."""
    found = []
    for one in (Store(), backward):
        world = warm_world(name)
        loss = call(world, unrolled_of(world, steps=5, backward=one))
        found.append((loss.item(), gradient_of(loss, world), torch.get_rng_state()))
    (value, gradient, state), (other_value, other_gradient, other_state) = found
    assert value == other_value
    assert all(torch.equal(a, b) for a, b in zip(gradient, other_gradient, strict=True))
    assert torch.equal(state, other_state)


@pytest.mark.parametrize("name", ["dropout", "wgan_gp"])
def test_without_replayed_draws_it_is_refused(name, monkeypatch):
    """The control: another mask in the second run is noticed."""
    monkeypatch.setattr(RandomState, "replayed", lambda self: nullcontext())
    world = warm_world(name)
    with pytest.raises(RuntimeError, match="not replayable"):
        call(world, unrolled_of(world, steps=3, backward=Recompute()))


ORDERS = {
    Store(): "01234",
    Recompute(): "01234 43210",
    Recompute(every=2): "01234 42301",
    Recompute(every=3): "01234 34012",
    Recompute(every=5): "01234 01234",
    Recompute(every=9): "01234 01234",
    Truncate(2): "01234",
    Truncate(2, Recompute()): "01234 43",
    Truncate(3, Recompute(every=2)): "01234 423",
    # And the first one again: whether the loss is deterministic.
    FiniteDifference(): "01234 432100",
    FiniteDifference(central=True): "01234 44332211000",
    Truncate(2, FiniteDifference()): "01234 433",
}


@pytest.mark.parametrize("backward", ORDERS, ids=str)
def test_the_order_of_recomputation(backward):
    """Each step once more, last segment first, each with the batch of its own; g_loss once, in between."""
    world, seen = warm_world(), []
    batches = [world.draw(k) for k in range(5)]
    number = {real.sum().item(): str(k) for k, (real, _) in enumerate(batches)}

    def d_loss(D, real, fake):
        seen.append(number[real.sum().item()])
        return world.d_loss(D, real, fake)

    def g_loss(D, real, fake):
        seen.append(" ")
        return world.g_loss(D, real, fake)

    asked = []
    unrolled = UnrolledGeneratorLoss(world.discriminator, world.optimizer, d_loss, g_loss, steps=5, backward=backward)

    def resample(k):
        asked.append(k)
        return batches[k]

    # In its first call FiniteDifference runs the last step again, and not the first.
    unrolled(*world.batch(), resample=resample)
    seen.clear()
    asked.clear()
    unrolled(*world.batch(), resample=resample)
    assert "".join(seen).strip() == ORDERS[backward]
    assert asked == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("backward", [Store(), Recompute(), Recompute(every=3)], ids=str)
def test_a_forward_pass_alone_replays_nothing(backward):
    """Nobody asks for a gradient: K runs of d_loss and no more."""
    for options, context in (({"stop_gradient": True}, nullcontext()), ({}, torch.no_grad())):
        world, seen = warm_world(), []

        def d_loss(*batch, world=world, seen=seen):
            seen.append(None)
            return world.d_loss(*batch)

        with context:
            call(world, unrolled_of(world, steps=4, backward=backward, **options), d_loss=d_loss)
        assert len(seen) == 4


def test_a_loss_that_cannot_be_replayed_is_an_error_with_a_remedy():
    """A counter in the loss: Recompute refuses, everything is put back; Store needs no second run."""
    world = warm_world("batchnorm_two_batches")
    count, d_loss = itertools.count(), world.d_loss
    world.d_loss = lambda D, real, fake: d_loss(D, real, fake) * (1 + 0.01 * next(count))
    before = snapshot(world)
    with pytest.raises(RuntimeError, match=r"inner step 2 .*not replayable.*is_unrolling.*Store\(\)"):
        call(world, unrolled_of(world, steps=3, backward=Recompute()))
    assert changed(before, snapshot(world)) == []
    assert not is_unrolling()
    assert torch.isfinite(call(world, unrolled_of(world, steps=3)))


@pytest.mark.parametrize("backward", EVERY, ids=str)
@pytest.mark.parametrize("name", ["batchnorm_two_batches", "spectral_norm_legacy", "lstm", "head_of_another_optimizer"])
def test_nothing_of_the_users_changes(name, backward):
    """With every backward: parameters, buffers, flags, optimizer; also when the replay raises."""
    world = warm_world(name)
    before, count, d_loss = snapshot(world), itertools.count(), world.d_loss
    call(world, unrolled_of(world, steps=3, backward=backward))
    assert changed(before, snapshot(world)) == []

    def raising(*batch):
        value = d_loss(*batch)
        if next(count) == 3:
            raise KeyboardInterrupt
        return value

    replays = not isinstance(backward, Store) and backward != Truncate(2)
    with pytest.raises(KeyboardInterrupt) if replays else nullcontext():
        call(world, unrolled_of(world, steps=3, backward=backward), d_loss=raising)
    assert changed(before, snapshot(world)) == []


@pytest.mark.parametrize("backward", [Recompute(), Recompute(every=2)], ids=str)
def test_average_recomputed(backward):
    """A generator's term after each step enters between two replays."""
    world = warm_world()
    expected = expect(world, steps=3, average=True)
    assert_exact(call(world, unrolled_of(world, steps=3, average=True, backward=backward)), world, expected)


# Truncate


@computed_once
def truncated(name, steps, last) -> Expected:
    """Differences of `last` real steps from the point that `steps - last` real ones lead to, whose fake never moves."""
    world = warm_world(name)
    world.before_call()
    ahead = reference.Copies(world.discriminator, world.optimizers(), {})
    batches = world.batches(steps) or [world.batch()] * steps
    for batch in batches[: steps - last]:
        reference.real_step(ahead, world.d_loss, batch, world.kwargs)
    # A resampled world draws its batches by the step's number, and the first steps are over.
    draw = world.draw
    world.batches = lambda count: [draw(steps - last + k) for k in range(count)] if world.resample else None
    return expect(world, steps=last)


# The real steps of this oracle would move what the live generator shares with D.
LEFT_OUT = {name for name in PROBLEMS if name.startswith("frozen")} | {"shared_with_the_generator"}
DIFFERENCED = [name for name, row in PROBLEMS.items() if not row.chain and name not in LEFT_OUT]


@pytest.mark.parametrize("name", DIFFERENCED)
def test_truncate_is_the_derivative_from_there(name):
    """The value of all steps, the derivative of the last two; and not the derivative of all."""
    expected = truncated(name, 4, 2)
    for backward in (Truncate(2), Truncate(2, Recompute())):
        world = warm_world(name)
        loss = call(world, unrolled_of(world, steps=4, backward=backward))
        assert_exact(loss, world, expected, gap=PROBLEMS[name].gap)
    world = warm_world(name)
    assert distance(gradient_of(call(world, unrolled_of(world, steps=4)), world), expected) > 1e-3


@pytest.mark.parametrize("name", ["mlp", "dropout", "batchnorm_two_batches", "two_discriminators_two_optimizers"])
def test_truncate_in_closures(name):
    """The same where the losses capture the batch, or run the generator again."""
    world = warm_world(name)
    assert_exact_in(MODES, world, unrolled_of(world, steps=4, backward=Truncate(2)), truncated(name, 4, 2))


@pytest.mark.parametrize("name", ["mlp", "dropout", "batchnorm_two_batches", "two_discriminators_two_optimizers"])
def test_truncate_at_k_is_store(name):
    """n = K: to the last bit."""
    gradients = []
    for backward in (Store(), Truncate(3), Truncate(3, Recompute())):
        world = warm_world(name)
        gradients.append(gradient_of(call(world, unrolled_of(world, steps=3, backward=backward)), world))
    for gradient in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradient, gradients[0], strict=True))


def test_truncate_longer_than_k():
    """An error before any step: got, allowed, do."""
    world, seen = warm_world(), []
    unrolled = unrolled_of(world, steps=2, backward=Truncate(3))
    with pytest.raises(ValueError, match=r"Truncate\(steps=3\) of 2 steps"):
        call(world, unrolled, d_loss=lambda *batch: seen.append(batch))
    assert seen == []
    # A schedule that starts at 0 or 1 unrolls nothing that could be cut off.
    assert call(world, unrolled, steps=0).item() == oracle(reference.value, world, steps=0).item()


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "2", None])
@pytest.mark.parametrize("kind", [Recompute, Truncate])
def test_a_wrong_number_of_steps(kind, wrong):
    """Refused where it is written down."""
    with pytest.raises(ValueError, match="whole number >= 1"):
        kind(wrong)


def test_a_single_parameter_is_pulled_back_without_graph(monkeypatch):
    """A block of one tensor is not copied: its gradient has a graph, which must not chain the steps together."""
    D = torch.nn.Linear(2, 1, bias=False).double()
    optimizer = torch.optim.Adam(D.parameters(), weight_decay=0.1)
    real, fake = torch.randn(2, 4, 2, dtype=torch.float64)
    fake.requires_grad_()
    non_saturating.d_loss(D, real, fake.detach()).backward()
    optimizer.step()
    seen, pullback = [], Update.pullback

    def watched(self, cotangent):
        of_grads, of_old = pullback(self, cotangent)
        seen.extend((of_grads[0], of_old[0].params))
        return of_grads, of_old

    monkeypatch.setattr(Update, "pullback", watched)
    UnrolledGeneratorLoss(D, optimizer, *non_saturating, steps=3)(real, fake)
    assert len(seen) == 6
    assert not any(t.requires_grad for t in seen)
