"""What verify has accused although it was right, or accused of the wrong thing: each passes, or has its cause named."""

import sys
from pathlib import Path

import pytest
import torch
from checks import unrolled_of, warm_world
from snapshot import changed, snapshot
from torch import nn
from torch.nn import functional as F

from unroll_wrap import UnrolledGeneratorLoss, diagnose, non_saturating, predict, verify
from unroll_wrap.diagnostics.causes import cause_of
from unroll_wrap.diagnostics.comparison import Comparison
from unroll_wrap.diagnostics.directional_derivative import Slope, together
from unroll_wrap.diagnostics.examined import Examined
from unroll_wrap.unrolling.unroll import Sensitivity

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from false_alarms import game  # noqa: E402

STEPS = 3
# Seeds that float32 alone has accused; see benchmarks/false_alarms.py for 200 of each kind.
FRESH = [("readme", 39), ("readme", 55), ("dcgan", 0), ("dcgan", 8), ("dcgan", 9)]


@pytest.mark.parametrize(("net", "seed"), FRESH)
def test_a_fresh_optimizer_in_float32(net, seed):
    """It passes by differences in float64, says that the state is fresh, and leaves everything as it was."""
    made = game(net, seed, double=False, warm=0)
    D, G = made.D, made.batch[1]
    before = [(t.dtype, t.data_ptr(), t.detach().clone()) for t in (*D.parameters(), *D.buffers(), *made.batch)]
    report = verify(made.unrolled(5), *made.batch, **made.labels)
    assert report.passed, report
    assert "in float64, on the same objects" in str(report) and "Adam starts from empty state" in str(report)
    assert "autograd.Function" not in str(report)
    after = [(t.dtype, t.data_ptr(), t.detach().clone()) for t in (*D.parameters(), *D.buffers(), *made.batch)]
    assert all(a[:2] == b[:2] and torch.equal(a[2], b[2]) for a, b in zip(before, after, strict=True))
    assert torch.get_default_dtype() is torch.float32 and not made.optimizer.state and G.grad_fn is not None
    # And training goes on.
    made.unrolled(5)(*made.batch, **made.labels).backward()


@pytest.mark.parametrize(("net", "seed"), [("readme", 9), ("dcgan", 0)])
def test_the_control_in_float32(net, seed, monkeypatch):
    """There too a derivative that is wrong fails, whether in every precision or in float32 alone."""
    right = Sensitivity.add

    exact = []

    def add(self, users, grads):
        return right(self, users, [g if g is None or g.dtype in exact else 1.1 * g for g in grads])

    monkeypatch.setattr(Sensitivity, "add", add)
    for right_in, words in ([], "The derivative is not that of real steps"), ([torch.float64], "wrong in float32"):
        exact[:] = right_in
        made = game(net, seed, double=False, warm=0)
        report = verify(made.unrolled(5), *made.batch, **made.labels)
        assert not report.passed and words in " ".join(report.problems), report


def test_a_bend_that_long_differences_miss(monkeypatch):
    """A seed whose first step bends within 1e-6 of the fakes, where longer differences agree on a third of the slope.

    The controls are wrong by 1 % and by the very factor that the long differences suggest; no function is blamed.
    """
    made = game("dcgan", 171, double=True, warm=0)
    report = verify(made.unrolled(5), *made.batch, **made.labels)
    assert report.passed and all(s.apart < 1e-4 * abs(s.difference) for s in report.slopes), report
    right = Sensitivity.add
    for factor in (1.01, 3.0, 1 / 3):
        with monkeypatch.context() as patch:
            patch.setattr(Sensitivity, "add", scaled(right, factor))
            wrong = verify(made.unrolled(5), *made.batch, **made.labels)
        assert not wrong.passed, wrong
        assert "Step D once before. Then verify again" in str(wrong) and "autograd.Function" not in str(wrong)


def scaled(right, factor):
    return lambda self, users, grads: right(self, users, [None if g is None else factor * g for g in grads])


def test_a_shorter_difference_refutes_longer_ones():
    """However precise these look; alone, it counts as no more precise than the gap, and one more confirms it."""
    long = {32: Slope(9.0, 3.0, 1e-6), 4: Slope(9.0, 3.0, 1e-5)}
    assert together(long).difference == 3.0 and together(long).conclusive
    alone = long | {1: Slope(9.0, 9.0, 1e-3)}
    assert together(alone).difference == 9.0 and not together(alone).conclusive
    confirmed = together(alone | {1 / 8: Slope(9.0, 9.0, 1e-3)})
    assert confirmed.difference == 9.0 and confirmed.agrees
    # The control: a short one drowns in rounding, and refutes nothing.
    assert together(long | {1: Slope(9.0, 9.0, 5.0)}) == long[32]


@pytest.mark.parametrize("double", [True, False])
def test_float64_is_not_told_to_be_float64(double):
    """A difference that says nothing; in float32, where there is no float64, the same user is told to try it."""
    made = game("readme", 0, double=double, warm=0)
    examined = Examined(made.unrolled(2), made.batch, None, {})
    comparison = Comparison(examined)
    comparison.outcome()
    told = cause_of(examined, comparison.real, comparison.ways, [Slope(1.0, 2.0, uncertainty=100.0)])
    assert told.startswith("The differences are too coarse") and "Adam starts from empty state" in told
    assert ("Verify in float64" in told) is not double


class Noise(torch.Tensor):
    """What BigGAN draws from: its own `to` goes by an attribute that results of operators do not have."""

    def to(self, *args, **kwargs):
        raise AttributeError("dist_type")


def test_a_fake_of_a_class_of_its_own():
    """Its class goes through G and D into the loss."""
    world = warm_world()
    real, _ = world.batch()
    fake = world.generator(torch.randn(6, 2, dtype=torch.float64).as_subclass(Noise))
    assert type(fake) is Noise
    assert verify(unrolled_of(world, steps=STEPS), real, fake).passed


@pytest.mark.parametrize("way", ["add", "slice", "item"])
def test_a_sum_that_begins_with_zeros(way):
    """`total = torch.zeros(1); total += loss` cuts nothing; the differences have to be told about cuts for that."""
    world = warm_world("dead_relu")
    d_loss = world.d_loss

    def summed(D, real, fake):
        total = torch.zeros(2, dtype=torch.float64)
        if way == "add":
            total += d_loss(D, real, fake)
        elif way == "slice":
            total[:1] += d_loss(D, real, fake)
        else:
            total[0] = d_loss(D, real, fake)
        return total.sum() / (2 if way == "add" else 1)

    def with_a_cut(D, real, fake):
        return (D(real).tanh().detach() - D(fake).tanh()).pow(2).mean()

    world.d_loss, world.g_loss = summed, with_a_cut
    report = verify(unrolled_of(world, steps=STEPS), *world.batch())
    assert report.passed, report
    assert len(report.cuts) == 1 and "in g_loss" in report.cuts[0]


class ByItsFirstBatch(nn.Module):
    """Sets its statistics through .data, as the ActNorm of several repositories does."""

    def __init__(self, n):
        super().__init__()
        self.loc, self.scale = nn.Parameter(torch.zeros(1, n)), nn.Parameter(torch.ones(1, n))
        self.register_buffer("initialized", torch.tensor(0, dtype=torch.uint8))

    def forward(self, x):
        if self.initialized.item() == 0:
            with torch.no_grad():
                mean, std = x.mean(0, keepdim=True), x.std(0, keepdim=True)
            self.loc.data.copy_(-mean)
            self.scale.data.copy_(1 / (std + 1e-6))
            self.initialized.fill_(1)
        return self.scale * (x + self.loc)


def test_statistics_from_the_first_batch():
    """Before its first batch, and after it."""
    for first in (True, False):
        torch.manual_seed(0)
        D = nn.Sequential(nn.Linear(2, 8), ByItsFirstBatch(8), nn.Tanh(), nn.Linear(8, 1)).double()
        real = torch.randn(6, 2).double() + 1
        fake = torch.randn(6, 2).double().requires_grad_()
        if not first:
            D(real)
        unrolled = UnrolledGeneratorLoss(D, torch.optim.SGD(D.parameters(), lr=0.1), *non_saturating, steps=STEPS)
        report = verify(unrolled, real, fake)
        assert report.passed, report
        assert bool(D[1].initialized) is not first


class Trainer:
    """Keeps the last images, as Lightning's own example of a GAN does."""

    def __init__(self, generated):
        self.generated = generated

    def d_loss(self, D, real, fake):
        return F.softplus(-D(real)).mean() + F.softplus(D(self.generated)).mean()

    def g_loss(self, D, real, fake):
        return F.softplus(-D(self.generated)).mean()


class LightningTrainer(nn.Module, Trainer):
    """The same, as a module, inside of which nobody looks for tensors."""

    def __init__(self, generated):
        nn.Module.__init__(self)
        self.generated = generated


@pytest.mark.parametrize("kind", [Trainer, LightningTrainer])
def test_an_old_fake_on_a_trainer(kind):
    """The tensor is named, with its line; the control uses its argument."""
    world = warm_world()
    trainer = kind(world.draw(0)[1])
    world.d_loss, world.g_loss = trainer.d_loss, trainer.g_loss
    real, fake = world.batch()
    report = verify(unrolled_of(world, steps=STEPS), real, fake)
    told = str(report)
    assert not report.passed and "Leave wrt out" not in told, report
    assert "of shape (6, 2)" in told and "test_false_alarms.py:" in told and "D(self.generated)" in told
    trainer.generated = fake
    assert verify(unrolled_of(world, steps=STEPS), real, fake).passed
    assert verify(unrolled_of(world, steps=STEPS), real, None).passed


class Rewritten(nn.Module):
    """A spectral norm that gives u and v new values through .data in each pass, as many repositories have it."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.u = nn.Parameter(F.normalize(torch.randn(layer.out_features), dim=0), requires_grad=False)
        self.v = nn.Parameter(F.normalize(torch.randn(layer.in_features), dim=0), requires_grad=False)

    def forward(self, x):
        w = self.layer.weight
        self.v.data = F.normalize(w.data.t() @ self.u.data, dim=0)
        self.u.data = F.normalize(w.data @ self.v.data, dim=0)
        return F.linear(x, w / self.u.dot(w @ self.v), self.layer.bias)


def test_a_norm_that_is_rewritten_between_two_passes():
    """The module is named; called once for both, as the message says, it passes."""
    for once in (False, True):
        torch.manual_seed(0)
        D = nn.Sequential(Rewritten(nn.Linear(16, 12)), nn.Tanh(), nn.Linear(12, 1)).double()

        def d_loss(D, real, fake, once=once):
            if once:
                on_real, on_fake = D(torch.cat([real, fake])).chunk(2)
            else:
                on_real, on_fake = D(real), D(fake)
            return F.softplus(-on_real).mean() + F.softplus(on_fake).mean()

        opt = torch.optim.SGD(D.parameters(), lr=0.3)
        unrolled = UnrolledGeneratorLoss(D, opt, d_loss, non_saturating.g_loss, steps=STEPS)
        real, fake = torch.randn(6, 16).double() + 1, torch.randn(6, 16).double().requires_grad_()
        report = verify(unrolled, real, fake)
        assert report.passed is once, report
        if not once:
            assert "of Rewritten (0) is rewritten through .data" in str(report), report
            assert "please report this" not in str(report)


SIZED = {
    "bce with logits": lambda out, ones: F.binary_cross_entropy_with_logits(out, ones),
    "bce": lambda out, ones: F.binary_cross_entropy(out.sigmoid(), ones),
    "product": lambda out, ones: F.softplus(-out.flatten() * ones.flatten()).mean(),
}


@pytest.mark.parametrize("name", SIZED)
@pytest.mark.parametrize("function", [verify, diagnose, predict])
def test_a_loss_of_one_size(name, function):
    """`ones` of 64 and a slice of 8: the size is said, before anything has moved."""
    ones, loss = torch.ones(64, 1), SIZED[name]
    D = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    opt = torch.optim.Adam(D.parameters())
    unrolled = UnrolledGeneratorLoss(
        D,
        opt,
        lambda D, real, fake: loss(D(real), ones) + loss(-D(fake), ones),
        lambda D, real, fake: loss(D(fake), ones),
        steps=2,
    )
    real, fake = torch.randn(64, 2), torch.randn(64, 2).requires_grad_()
    with pytest.raises(ValueError, match="8 samples, and a loss takes batches of 64 only"):
        function(unrolled, real[:8], fake[:8])
    assert function(unrolled, real, fake)
    # The control: another error stays what it is.
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        function(unrolled, torch.randn(64, 3), torch.randn(64, 3).requires_grad_())


def test_everything_is_put_back_from_float64_after_an_error_too():
    """A loss that takes float32 alone: the report says so, and nothing has moved."""
    made = game("readme", 39, double=False, warm=0)
    only = torch.float32

    def d_loss(D, real, fake):
        if real.dtype is not only:
            raise TypeError("float32 is what this takes")
        return non_saturating.d_loss(D, real, fake)

    unrolled = UnrolledGeneratorLoss(made.D, made.optimizer, d_loss, non_saturating.g_loss, steps=5)
    report = verify(unrolled, *made.batch)
    assert "In float64 the losses fail: float32 is what this takes" in str(report)
    assert {t.dtype for t in (*made.D.parameters(), *made.batch)} == {only}


def test_worlds_stay_as_they_were():
    """The double world is put back bit for bit, closures and the optimizer's state included."""
    world = warm_world()
    world.discriminator.float(), world.generator.float()
    optimizer = torch.optim.Adam(world.discriminator.parameters(), lr=0.02)
    real, fake = torch.randn(6, 2), world.generator(torch.randn(6, 2))
    world.optimizer, before = optimizer, None
    unrolled = UnrolledGeneratorLoss(world.discriminator, optimizer, world.d_loss, world.g_loss, steps=5)
    before = snapshot(world)
    verify(unrolled, real, fake)
    assert changed(before, snapshot(world)) == []
