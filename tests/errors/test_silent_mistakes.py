"""Mistakes that used to stay silent or to blame the wrong thing: each is told, and the correct use beside it is not."""

import functools
import types
import warnings

import pytest
import torch
from checks import assert_exact, expect, oracle, warm_world
from reference import gap, value
from refusals import refused
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from unroll_wrap import (
    FiniteDifference,
    UnrolledGeneratorLoss,
    hinge,
    least_squares,
    minimax,
    non_saturating,
    relativistic,
    wasserstein,
)
from unroll_wrap.objectives import _on_fake, _on_real

F64 = torch.float64


class Given:
    """Two players, a batch, and an optimizer that has taken a step."""

    def __init__(self, D, dtype=F64, **labels):
        torch.manual_seed(0)
        self.generator = nn.Linear(2, 2).to(dtype)
        self.discriminator = D.to(dtype)
        self.optimizer = torch.optim.Adam(D.parameters(), lr=0.05)
        self.real, noise = torch.randn(6, 2).to(dtype), torch.randn(6, 2).to(dtype)
        self.fake = self.generator(noise)
        first = D(self.real, **labels)
        (first[0] if isinstance(first, tuple) else first).float().sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def optimizers(self):
        return [self.optimizer]

    def batch(self):
        return self.real, self.fake

    def inputs(self):
        return list(self.generator.parameters())

    def unrolled(self, *losses, **options):
        return UnrolledGeneratorLoss(self.discriminator, self.optimizer, *losses, **{"steps": 2, **options})

    def call(self, *losses, **options):
        return self.unrolled(*losses, **options)(self.real, self.fake)


class Head(nn.Module):
    """Linear scores, and a function after them."""

    def __init__(self, last):
        super().__init__()
        self.score, self.last = nn.Linear(2, 1), last

    def forward(self, x):
        return self.last(self.score(x))


class Gated(nn.Module):
    """Scores that are logits, though a Softmax is what is registered last, and a Sigmoid is within."""

    def __init__(self, last):
        super().__init__()
        self.body, self.score, self.softmax, self.last = nn.Linear(2, 2), nn.Linear(2, 1), nn.Softmax(-1), last

    def forward(self, x):
        return self.last(self.score(self.softmax(self.body(x)) * torch.sigmoid(x)), torch.sigmoid(self.body(x)[:, :1]))


BOUNDED = {
    "in forward": Head(torch.sigmoid),
    "and a view": Head(lambda out: torch.sigmoid(out).view(-1)),
    "and a squeeze": Head(lambda out: torch.sigmoid(out).squeeze(1)),
    "a module": nn.Sequential(nn.Linear(2, 1), nn.Sigmoid()),
    "LogSigmoid": Head(nn.functional.logsigmoid),
    "two classes": nn.Sequential(nn.Linear(2, 2), nn.Softmax(1)),
}
OF_LOGITS = {
    "minimax": minimax,
    "non_saturating": non_saturating,
    "hinge": hinge,
    "relativistic": relativistic,
}


@pytest.mark.parametrize("objective", OF_LOGITS)
@pytest.mark.parametrize("D", BOUNDED)
def test_a_sigmoid_wherever_it_is_written(D, objective):
    given = Given(BOUNDED[D])
    unrolled = given.unrolled(*OF_LOGITS[objective])
    for _ in range(2):  # not only the first call's
        with pytest.warns(UserWarning, match="output comes from (Log)?(Sigmoid|Softmax).*take logits") as caught:
            unrolled(given.real, given.fake)
        assert [one.filename for one in caught] == [__file__]


def test_a_sigmoid_is_told_without_steps_and_under_autocast_too():
    given = Given(Head(torch.sigmoid), torch.float32)
    with pytest.warns(UserWarning, match="comes from Sigmoid"):
        given.call(*non_saturating, steps=0)
    with pytest.warns(UserWarning, match="comes from Sigmoid"), torch.autocast("cpu", torch.bfloat16):
        given.call(*non_saturating)


@pytest.mark.parametrize("last", [lambda a, b: a, torch.add, torch.sub, torch.mul], ids=["plain", "+", "-", "*"])
@pytest.mark.parametrize("objective", OF_LOGITS)
def test_a_sigmoid_inside_is_none_at_the_end(objective, last):
    """The control: attention's Softmax registered last, and scores that a gate is added to or multiplied with."""
    if objective == "relativistic" and last is torch.sub:
        last = torch.add
    assert torch.isfinite(Given(Gated(last)).call(*OF_LOGITS[objective]))


@pytest.mark.parametrize("objective", [least_squares, wasserstein])
def test_a_sigmoid_where_any_number_will_do(objective):
    assert torch.isfinite(Given(Head(torch.sigmoid)).call(*objective))


class Own:
    """Losses of a user's, with their arguments named."""

    @staticmethod
    def d_loss(D, real, fake):
        return D(fake).square().mean() + (D(real) - 1).square().mean()

    @staticmethod
    def g_loss(D, real, fake):
        return (D(fake) - 1).square().mean()


def test_real_and_fake_swapped_with_losses_of_ones_own():
    given = Given(nn.Linear(2, 1))
    unrolled = given.unrolled(Own.d_loss, Own.g_loss)
    refused(given, lambda: unrolled(given.fake, given.real), "real has a graph", r"order is \(real, fake\)")
    assert torch.isfinite(unrolled(given.real, given.fake))


def test_losses_in_another_order_are_the_users_choice():
    """Where the names tell it, the order that these losses do not take is refused; no other names are judged."""
    given = Given(nn.Linear(2, 1))
    unrolled = given.unrolled(lambda D, fake, real: Own.d_loss(D, real, fake), lambda D, *both: D(both[0]).mean())
    assert torch.isfinite(unrolled(given.fake, given.real))
    refused(given, lambda: unrolled(given.real, given.fake), "real has a graph", r"order is \(fake, real\)")
    assert torch.isfinite(unrolled(given.fake, given.real, d_loss=lambda D, a, b: Own.d_loss(D, b, a)))
    assert torch.isfinite(unrolled(given.fake, given.real, d_loss=lambda D, *both: Own.d_loss(D, *both[::-1])))


class Conditional(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.of = nn.Linear(2, 4), nn.Embedding(10, 4)

    def forward(self, x, labels):
        return (self.body(x) * self.of(labels)).sum(1)


@pytest.mark.parametrize("objective", ["least_squares", "wasserstein", *OF_LOGITS])
def test_labels_of_the_fakes_alone(objective):
    """`fake_labels` is `labels` for the fakes: exact, and told apart from one set of labels for both."""
    pair = {**OF_LOGITS, "least_squares": least_squares, "wasserstein": wasserstein}[objective]
    labels, others = torch.arange(6), torch.tensor([7, 9, 8, 3, 1, 0])
    given = Given(Conditional(), labels=labels)

    def halves(loss):
        """The loss, with D told which half it is asked about by the tensor itself."""

        def own(D, real, fake):
            return loss(lambda x: D(x, labels if x is real else others), real, fake)

        return own

    unrolled, batch = given.unrolled(*pair), (given.real, given.fake)
    found = unrolled(*batch, labels=labels, fake_labels=others)
    expected = unrolled(*batch, d_loss=halves(pair.d_loss), g_loss=halves(pair.g_loss))
    gradients = [torch.autograd.grad(one, given.inputs(), retain_graph=True) for one in (found, expected)]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert gap(*gradients) < 1e-12
    # The control.
    same = torch.autograd.grad(unrolled(*batch, labels=labels), given.inputs(), retain_graph=True)
    assert gap(same, gradients[1]) > 1e-3


def test_a_keyword_of_ds_own_that_begins_with_fake():
    """Without its partner it is passed on as it is."""

    def D(x, fake_share=0.0, labels=0.0):
        return x + fake_share + 10 * labels

    one = torch.ones(1)
    assert _on_fake(D, one, {"fake_share": 1}) == _on_real(D, one, {"fake_share": 1}) == 2
    assert (_on_real(D, one, {"labels": 1, "fake_labels": 2}), _on_fake(D, one, {"labels": 1, "fake_labels": 2})) == (
        11,
        21,
    )


def test_everything_in_float16():
    """Adam's eps is 0 there, and its first quotient NaN: not a matter of the learning rate."""
    given = Given(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)), torch.float16)
    given.discriminator[0].bias.data.fill_(-9)  # dead units
    fresh = torch.optim.Adam(given.discriminator.parameters(), lr=0.05)
    unrolled = UnrolledGeneratorLoss(given.discriminator, fresh, *non_saturating, steps=2)
    refused(given, lambda: unrolled(given.real, given.fake), "in float16", "float32", "torch.autocast")


def test_a_loss_that_overflows_in_float32_blames_the_learning_rate():
    """The control."""
    given = Given(nn.Linear(2, 1))
    d_loss, huge = (lambda D, real, fake: D(fake).exp().mean()), torch.optim.SGD(given.discriminator.parameters(), 1e9)
    unrolled = UnrolledGeneratorLoss(given.discriminator, huge, lambda *a: -d_loss(*a), Own.g_loss, steps=3)
    refused(given, lambda: unrolled(given.real, given.fake), "Lower the discriminator's learning rate")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda D: D.half(), ["parameters are in torch.float16", "D.float", "autocast"]),
        (lambda D: D.to(torch.bfloat16), ["parameters are in torch.bfloat16", "D.float"]),
        (lambda D: D.to("meta"), ["on the meta device", "to_empty"]),
    ],
    ids=["float16", "bfloat16", "meta"],
)
def test_the_discriminator_alone_is_elsewhere(change, words):
    """It is to blame, not the batch; a batch that is elsewhere itself is told as before."""
    given = Given(nn.Linear(2, 1), torch.float32)
    change(given.discriminator)
    fresh = torch.optim.SGD(given.discriminator.parameters(), lr=0.1)
    unrolled = UnrolledGeneratorLoss(given.discriminator, fresh, *non_saturating, steps=2)
    with pytest.raises(ValueError) as caught:
        unrolled(given.real, given.fake)
    assert "Move the batch" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
    other = Given(nn.Linear(2, 1))
    refused(other, lambda: other.unrolled(*non_saturating)(other.real.float(), other.fake), "Move the batch")


def test_a_discriminator_that_was_cast_after_its_optimizer_had_state():
    """The remedy of the message works; state of another shape has another one."""
    given = Given(nn.Linear(2, 1), torch.float32)
    given.discriminator.double()
    real, fake = given.real.double(), given.fake.double()
    refused(
        given, lambda: given.unrolled(*non_saturating)(real, fake), "cast or moved after", r"opt_D.load_state_dict\("
    )
    given.optimizer.load_state_dict(given.optimizer.state_dict())
    assert torch.isfinite(given.unrolled(*non_saturating)(real, fake))
    for state in given.optimizer.state.values():
        state["exp_avg"] = torch.zeros(3, dtype=F64)
    refused(
        given, lambda: given.unrolled(*non_saturating)(real, fake), "Load a state_dict that belongs to these parameters"
    )


class WithFeatures(nn.Linear):
    def forward(self, x):
        return super().forward(x), x


@pytest.mark.parametrize("objective", [*OF_LOGITS.values(), least_squares, wasserstein])
def test_a_discriminator_that_returns_a_tuple(objective):
    given = Given(WithFeatures(2, 1))
    refused(given, lambda: given.call(*objective), "D returned a tuple", "one tensor of logits", r"D\(x\)\[0\]")
    picked = [functools.partial(lambda loss, D, *batch: loss(lambda x: D(x)[0], *batch), loss) for loss in objective]
    assert torch.isfinite(given.call(*picked))


class Flat(nn.Linear):
    def forward(self, x):
        return super().forward(x.view(-1, 2))


@pytest.mark.parametrize("D", [nn.Linear(2, 1), Flat(2, 1)])
@pytest.mark.parametrize("steps", [0, 2])
def test_a_real_batch_that_is_a_list_of_images_and_labels(D, steps):
    given = Given(D)
    both, unrolled = [given.real, torch.zeros(6)], given.unrolled(*minimax, steps=steps)
    refused(given, lambda: unrolled(both, given.fake), "a list of 2", "images and labels", "take them apart")
    assert torch.isfinite(unrolled(both[0], given.fake))


def test_a_list_that_the_loss_takes_apart_is_none():
    """The control; and an error of the loss's own stays its own."""
    given = Given(nn.Linear(2, 1))
    unrolled = given.unrolled(lambda D, real, fake: Own.d_loss(D, real[0], fake), Own.g_loss)
    assert torch.isfinite(unrolled([given.real, torch.zeros(6)], given.fake))
    with pytest.raises(AttributeError, match="^'Tensor' object has no attribute 'label'"):
        unrolled([given.real], given.fake, d_loss=lambda D, real, fake: fake.label)


@pytest.mark.parametrize("kind", [list, lambda Ds: dict(enumerate(Ds))], ids=["list", "dict"])
@pytest.mark.parametrize("steps", [0, 2])
def test_the_default_losses_with_several_discriminators(kind, steps):
    given, other = Given(nn.Linear(2, 1)), Given(nn.Linear(2, 1))
    both = kind([given.discriminator, other.discriminator])
    unrolled = UnrolledGeneratorLoss(both, [given.optimizer, other.optimizer], steps=steps)
    refused(given, lambda: unrolled(given.real, given.fake), "calls D", "of 2", "which of them is asked")
    summed = [lambda Ds, *batch, loss=loss: loss(Ds[0], *batch) + loss(Ds[1], *batch) for loss in minimax]
    assert torch.isfinite(unrolled(given.real, given.fake, d_loss=summed[0], g_loss=summed[1]))


def test_an_iterator_that_runs_out_in_a_callable():
    """A StopIteration would end a generator of the user's that the call stands in, in silence."""
    given = Given(nn.Linear(2, 1))

    def batches(n):
        source = iter([(given.real, given.fake)] * n)
        return lambda k: next(source)

    refused(given, lambda: given.call(*minimax, resample=batches(1)), "ran dry", r"gave 1 batches for steps=2")
    assert torch.isfinite(given.call(*minimax, resample=batches(2)))


def test_keywords_stay_those_of_the_call_while_batches_are_drawn_anew():
    """As troubleshooting says; as a part of the batch they are drawn with it."""
    labels, seen = torch.arange(6), []
    given = Given(Conditional(), labels=labels)

    def noting(D, real, fake, labels):
        seen.append(labels)
        return non_saturating.d_loss(D, real, fake, labels=labels)

    def g_loss(D, real, fake, labels):
        return non_saturating.g_loss(D, real, fake, labels=labels)

    unrolled = given.unrolled(noting, g_loss, resample=lambda k: (given.real, given.fake))
    unrolled(given.real, given.fake, labels=labels)
    assert len(seen) >= 2 and all(one is labels for one in seen)
    seen.clear()
    unrolled(given.real, given.fake, labels, resample=lambda k: (given.real, given.fake, labels.flip(0)))
    assert all(torch.equal(one, labels.flip(0)) for one in seen[:2])


class Immutable(dict):
    def __setitem__(self, key, value):
        raise TypeError("immutable")


class Once(dict):
    def __setitem__(self, key, value):
        if key in self:
            raise KeyError(f"{key} is there")
        super().__setitem__(key, value)


class Pair(tuple):
    def __new__(cls, real, fake):
        return super().__new__(cls, (real, fake))

    def __getitem__(self, key):
        return super().__getitem__(("real", "fake").index(key))


KINDS = {
    "immutable": lambda real, fake: Immutable(real=real, fake=fake),
    "each key once": lambda real, fake: Once(real=real, fake=fake),
    "a view": lambda real, fake: types.MappingProxyType({"real": real, "fake": fake}),
    "a tuple with a constructor of its own": Pair,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_in_a_container_that_cannot_be_refilled(kind):
    """Exact all the same, as for tensors that a loss captures."""
    world = warm_world()
    expected = expect(world, steps=3)
    d_loss, g_loss = (
        lambda D, batch, loss=loss: loss(D, batch["real"], batch["fake"]) for loss in (world.d_loss, world.g_loss)
    )
    unrolled = UnrolledGeneratorLoss(world.discriminator, world.optimizer, d_loss, g_loss, steps=3)
    assert_exact(unrolled(KINDS[kind](*world.batch())), world, expected)


class Selective(nn.Module):
    """One part is checkpointed, the results of its matrix products being kept."""

    def __init__(self, context):
        super().__init__()
        self.body, self.score = nn.Sequential(nn.Linear(2, 5, dtype=F64), nn.Tanh()), nn.Linear(5, 1, dtype=F64)
        self.context = context

    def forward(self, x):
        return self.score(checkpoint(self.body, x, use_reentrant=False, **self.context))


def keeping_products(ctx, op, *args, **kwargs):
    kept = op == torch.ops.aten.addmm.default
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def test_a_selective_checkpoint():
    """Torch differentiates it once; the ways that the message names work, and a plain checkpoint does."""
    contexts = {"context_fn": functools.partial(create_selective_checkpoint_contexts, keeping_products)}
    given = Given(Selective(contexts))
    refused(given, lambda: given.call(*minimax), "checkpointed selectively", "plain", r"FiniteDifference\(\)")
    for options in ({"backward": FiniteDifference()}, {"stop_gradient": True}):
        real = value(given.discriminator, given.optimizer, *minimax, (given.real, given.fake), 2)
        torch.testing.assert_close(given.call(*minimax, **options), real, rtol=1e-12, atol=0)
    plain = Given(Selective({}))
    assert torch.isfinite(plain.call(*minimax))


def test_the_warm_world_is_silent():
    """The control of the whole file: every objective on a plain net, without a word."""
    world = warm_world()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for pair in (*OF_LOGITS.values(), least_squares, wasserstein):
            unrolled = UnrolledGeneratorLoss(world.discriminator, world.optimizer, *pair, steps=2)
            world.d_loss, world.g_loss = pair
            torch.testing.assert_close(unrolled(*world.batch()), oracle(value, world, steps=2), rtol=1e-12, atol=0)
