"""verify: passes where the unroll is right, leaves everything alone, and names what is wrong in the user's terms."""

import array
import copy
import functools
import io
import itertools
import random
import sys

import numpy
import pytest
import reference
import torch
from checks import MODES, call, oracle, unrolled_of, warm_world
from functions import Silent, once_world
from optimizers import OPTIMIZERS
from problems import PROBLEMS, softplus
from snapshot import changed, snapshot
from torch_optimizer_rows import FACTORIES, REFUSED, VERDICTS

from unroll_wrap import (
    FiniteDifference,
    Recompute,
    Truncate,
    UnrolledGeneratorLoss,
    detach,
    diagnose,
    is_unrolling,
    non_saturating,
    verify,
)
from unroll_wrap.diagnostics import progress
from unroll_wrap.optimizers.rules.adam import Adam
from unroll_wrap.unrolling import unroll
from unroll_wrap.unrolling.unroll import Sensitivity

F64 = torch.float64
# Where torch or the net itself computes something from D or fake under no_grad.
WITH_CUTS = {name for name, row in PROBLEMS.items() if row.chain}


def verified(world, mode="argument", steps=3, call_options=None, **options):
    """A report on a world, its call written in one of the three ways."""
    unrolled = unrolled_of(world, steps=steps, **options)
    return call(world, functools.partial(verify, unrolled), mode, **(call_options or {}))


@pytest.mark.parametrize("name", list(PROBLEMS))
def test_passes_on_every_problem_and_touches_nothing(name, capsys):
    """Value and slopes as the oracle has them; D, optimizer, generator and random stream as before."""
    world = warm_world(name)
    unrolled, state = unrolled_of(world, steps=3), torch.get_rng_state()
    value = oracle(reference.value, world, steps=3)
    before = snapshot(world)
    report = verify(unrolled, *world.batch(), **world.kwargs)
    assert changed(before, snapshot(world)) == []
    assert torch.equal(torch.get_rng_state(), state)
    assert report.passed and report, report
    assert report.value == pytest.approx(value.item(), rel=1e-12)
    assert report.real_value == pytest.approx(report.value, rel=1e-14)
    assert len(report.slopes) == 2 and all(abs(s.surrogate) > 1e-2 and s.conclusive for s in report.slopes)
    assert bool(report.cuts) == (name in WITH_CUTS)
    assert capsys.readouterr().out == ""
    assert str(report).startswith("unroll_wrap.verify: passed\n")


# What a first step has that no later one has. Those of the last kind round to float32, which only their state tells.
AT_FIRST = {"AccSGD": "tracing its step() failed", "Shampoo": "the gradient of the unrolled one is not"}
AT_FIRST |= dict.fromkeys(("RAdam", "Ranger", "RangerVA"), "Step D once before. Then verify again")
THIRD_PARTY = {name: make for name, make in FACTORIES.items() if VERDICTS[name] != REFUSED}


@pytest.mark.filterwarnings("ignore:This overload of")
@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, *THIRD_PARTY])
def test_passes_with_every_optimizer(optimizer):
    """Every row of the tables, ruled or traced, warm and fresh: the call and the live step agree, nothing has moved."""
    for warm in (True, False):
        torch.manual_seed(0)
        world = PROBLEMS["mlp"].build(OPTIMIZERS.get(optimizer) or THIRD_PARTY[optimizer])
        world = world.warm() if warm else world
        before = snapshot(world)
        report = verify(unrolled_of(world, steps=3), *world.batch())
        said = AT_FIRST.get(optimizer) if not warm else None
        if optimizer == "NovoGrad" and not warm and not report.passed:
            # Its v is rounded to float32: whether differences from empty state show that varies with the machine.
            said = AT_FIRST["RAdam"]
        assert report.passed if said is None else said in str(report), report
        assert changed(before, snapshot(world)) == []


@pytest.mark.filterwarnings("ignore:This overload of")
@pytest.mark.parametrize("factor", [1.0, 1.03])
def test_an_optimizer_that_rounds_to_float32(factor, monkeypatch):
    """In float64, by differences as precise as its rounding allows, which still tell three percent."""
    right = Sensitivity.add
    scaled = lambda self, users, grads: right(self, users, [None if g is None else factor * g for g in grads])  # noqa: E731
    monkeypatch.setattr(Sensitivity, "add", scaled)
    torch.manual_seed(0)
    world = PROBLEMS["mlp"].build(FACTORIES["RAdam"]).warm()
    assert verify(unrolled_of(world, steps=3), *world.batch()).passed is (factor == 1)


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize("name", ["mlp", "batchnorm_one_batch", "spectral_norm_new", "wgan_gp", "conditional", "lstm"])
def test_passes_with_closures(name, mode):
    """What the losses capture is found: the batch, or a generator that they run again."""
    world = warm_world(name)
    before = snapshot(world)
    assert verified(world, mode).passed
    assert changed(before, snapshot(world)) == []


@pytest.mark.parametrize("norm", ["spectral", "batch"])
def test_a_generator_that_the_losses_run_stays_where_it_was(norm):
    """Every run starts from the same statistics and power iterations of G, and G keeps them afterwards."""
    world = warm_world()
    first = torch.nn.utils.parametrizations.spectral_norm(world.generator[0])
    layers = [first] if norm == "spectral" else [world.generator[0], torch.nn.BatchNorm1d(3).double()]
    G = torch.nn.Sequential(*layers, *world.generator[1:])
    noise, real = torch.randn(6, 2, dtype=torch.float64), world.batch()[0]
    options = {
        "d_loss": lambda D: world.d_loss(D, real, G(noise)),
        "g_loss": lambda D: world.g_loss(D, real, G(noise)),
    }
    unrolled, before = unrolled_of(world, steps=3), copy.deepcopy(G.state_dict())
    assert verify(unrolled, **options).passed
    assert diagnose(unrolled, **options).second_term > 0
    assert all(torch.equal(one, before[name]) for name, one in G.state_dict().items())
    # The control: a call moves them.
    unrolled(**options)
    assert not all(torch.equal(one, before[name]) for name, one in G.state_dict().items())


def clamp(p):
    return p.clamp(-0.45, 0.45)


OPTIONS = {
    "plain": {"steps": 0},
    "average": {"average": True},
    "first term": {"stop_gradient": True},
    "recomputed": {"backward": Recompute()},
    "truncated": {"backward": Truncate(1)},
    "truncated average": {"backward": Truncate(2), "average": True},
    "differences": {"backward": FiniteDifference()},
    "truncated differences": {"backward": Truncate(2, FiniteDifference())},
    "clipped weights": {"param_transform": clamp},
    "clipped gradients": {"grad_transform": lambda grads: [g.clamp(-0.1, 0.1) for g in grads]},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_passes_with_every_option(options):
    """What is left out by choice is left out of the differences too, and is noted."""
    report = verified(warm_world(), **options)
    assert report.passed, report
    chosen = options.get("stop_gradient") or not isinstance(options.get("backward", Recompute()), Recompute)
    chosen = chosen or options.get("steps") == 0
    assert bool(report.notes) == bool(chosen)


def test_resampled_batches_are_drawn_once():
    """A loader loses K batches, as in a call."""
    # A list would be put back, as all that resample keeps.
    world, asked = warm_world(), array.array("i")
    unrolled = unrolled_of(world, steps=3)
    assert verify(unrolled, *world.batch(), resample=lambda k: (asked.append(k), world.draw(k))[1]).passed
    assert list(asked) == [0, 1, 2]


def test_passes_in_single_precision():
    """Rounding is told from an error."""
    world = warm_world()
    D, G = world.discriminator.float(), world.generator.float()
    optimizer = torch.optim.Adam(D.parameters(), lr=0.02, betas=(0.5, 0.9))
    optimizer.load_state_dict(world.optimizer.state_dict())
    world.optimizer = optimizer
    unrolled = unrolled_of(world, steps=3)
    batch = torch.randn(6, 2), G(torch.randn(6, 2))
    assert verify(unrolled, *batch).passed


def test_what_it_costs():
    """Once watched, once unrolled, twice along each direction: 6 K evaluations of d_loss."""
    world, count = warm_world(), itertools.count()
    d_loss = world.d_loss
    world.d_loss = lambda *batch: (next(count), d_loss(*batch))[1]
    assert verified(world, steps=5).passed
    assert next(count) == 6 * 5


# What is wrong, named


def failing(*words, **options):
    """The report of a failed verification; every word occurs in its problems."""
    report = verified(**options)
    assert not report.passed and not report and str(report).startswith("unroll_wrap.verify: FAILED")
    for word in words:
        assert word in " ".join(report.problems), report
    return report


def test_a_discriminator_that_was_left_in_eval_mode():
    """A note, because some mean it; none in training."""
    world = warm_world("batchnorm_one_batch")
    assert verified(world).notes == []
    world.discriminator.eval()
    report = verified(world)
    assert report.passed and report.notes == [
        "D runs BatchNorm2d in eval mode, here and in the real steps. If D trains otherwise, call D.train()."
    ]


def test_fake_arrives_detached():
    """In the batch."""
    world = warm_world()
    draw = world.draw
    world.draw = lambda i: [x.detach() for x in draw(i)]
    report = failing("fake arrives detached", "without detach()", world=world)
    assert "nan" not in str(report)


def test_fake_detached_in_d_loss():
    """The line is shown, and unroll_wrap.detach mends it."""
    world = warm_world()
    world.d_loss = lambda D, real, fake: softplus(-D(real)).mean() + softplus(D(fake.detach())).mean()
    report = failing("d_loss does not depend on the generator", "unroll_wrap.detach(fake)", world=world)
    assert len(report.cuts) == 1 and "detach of a tensor of shape (6, 2) of the batch, in d_loss" in report.cuts[0]
    assert "D(fake.detach())" in report.cuts[0] and "test_verify.py:" in report.cuts[0]
    world.d_loss = lambda D, real, fake: softplus(-D(real)).mean() + softplus(D(detach(fake))).mean()
    report = verified(world)
    assert report.passed and report.cuts == []


def test_an_optimizer_that_is_not_ds():
    """D's parameters were made anew after the optimizer: what moves is another net."""
    world = warm_world()
    unrolled = unrolled_of(world, steps=3)
    for layer in (world.discriminator[0], world.discriminator[2]):
        layer.weight = torch.nn.Parameter(layer.weight.detach().clone())
        layer.bias = torch.nn.Parameter(layer.bias.detach().clone())
    report = verify(unrolled, *world.batch())
    assert not report.passed and "none of them is the discriminator's" in report.problems[0]


@pytest.mark.parametrize("which", ["d_loss", "g_loss"])
def test_a_loss_that_changes_state(which):
    """It is named, with both values."""
    world, count = warm_world(), itertools.count()
    loss = getattr(world, which)
    setattr(world, which, lambda *batch: loss(*batch) * (1 + 1e-3 * next(count)))
    failing(which, "once more from the same state", "is_unrolling", world=world)


def test_a_loss_that_draws_from_another_generator():
    """From one of its own, which is put back; the control is an iterator, which nothing puts back."""
    for draw in (random.Random(0), torch.Generator().manual_seed(0)):
        world = warm_world()
        d_loss = world.d_loss
        number = draw.random if isinstance(draw, random.Random) else lambda draw=draw: torch.rand((), generator=draw)
        world.d_loss = lambda *batch, d_loss=d_loss, number=number: d_loss(*batch) * (1 + 0.1 * float(number()))
        assert verified(world).passed
    world = warm_world()
    d_loss, numbers = world.d_loss, iter(torch.linspace(0, 1, 1000).tolist())
    world.d_loss = lambda *batch: d_loss(*batch) * (1 + 1e-6 * next(numbers))
    failing("d_loss at inner step 0", "draw with torch", world=world)


def test_what_python_and_numpy_draw_is_drawn_again():
    """From their global generators, which stand afterwards where they stood: many penalties draw by numpy."""
    world = warm_world()
    d_loss = world.d_loss
    world.d_loss = lambda *batch: d_loss(*batch) * (1 + 0.1 * random.random() + 0.1 * float(numpy.random.rand()))
    before = random.getstate(), numpy.random.get_state()[1].tolist()
    assert verified(world).passed
    assert (random.getstate(), numpy.random.get_state()[1].tolist()) == before


def test_an_operator_without_second_derivative():
    """Also where autograd says nothing; with FiniteDifference it passes."""
    failing("no second derivative", "d_loss at inner step 0", "OnceBackward", world=once_world())
    assert verified(once_world(), backward=FiniteDifference(central=True)).passed


class Wrong(torch.autograd.Function):
    """tanh with another derivative."""

    @staticmethod
    def forward(ctx, x):
        return x.tanh()

    @staticmethod
    def backward(ctx, grad):
        return 0.7 * grad


def test_a_second_derivative_that_is_wrong():
    """First-order gradients tell it: FiniteDifference is right."""
    world = warm_world()
    world.d_loss = lambda D, r, f: softplus(-Silent.apply(D(r))).mean() + softplus(Silent.apply(D(f))).mean()
    failing("backward=FiniteDifference() it is", "wrong second derivative", world=world)
    assert verified(world, backward=FiniteDifference(central=True)).passed


def test_a_first_derivative_that_is_wrong():
    """Nothing helps but to mend it."""
    world = warm_world()
    world.g_loss = lambda D, real, fake: softplus(-Wrong.apply(D(fake))).mean()
    failing("torch.autograd.Function in a loss may have a wrong backward", world=world)


@pytest.mark.parametrize("mode", MODES[:2])
def test_wrt_that_cannot_move_the_losses(mode):
    """fake was made before the call: moving the generator moves nothing any more."""
    world = warm_world()
    failing("Leave wrt out", world=world, mode=mode, call_options={"wrt": world.inputs})


def test_wrt_given():
    """A generator's parameters where the losses run it; fake itself, alone."""
    world = warm_world()
    assert verified(world, "rerun", call_options={"wrt": world.inputs}).passed
    real, fake = world.batch()
    assert verify(unrolled_of(world, steps=3), real, fake, wrt=fake).passed


# A loss's own detach


def cut_by(way):
    """A feature-matching loss whose real side, which depends on θ^K, is cut in some way."""

    def g_loss(D, real, fake):
        if way == "detach":
            on_real = D(real).tanh().detach()
        elif way == "data":
            on_real = D(real).tanh().data
        elif way == "item":
            on_real = D(real).tanh().mean().item()
        elif way == "no_grad":
            with torch.no_grad():
                on_real = D(real).tanh()
        elif way == "list":
            on_real = torch.tensor(D(real).tanh().tolist(), dtype=torch.float64)
        elif way == "detached item":
            on_real = D(real).tanh().detach().mean().item()
        elif way == "numpy":
            on_real = torch.from_numpy(D(real).tanh().detach().numpy().copy())
        else:
            on_real = D(real).tanh()
        return (on_real - D(fake).tanh()).pow(2).mean()

    return g_loss


@pytest.mark.parametrize("way", ["detach", "data", "no_grad", "item", "detached item", "list", "numpy"])
def test_a_users_own_cut_is_told_from_an_error(way):
    """It passes where a call warns of it, and fails where none can; the tensor, the loss and the line are named."""
    world = warm_world()
    world.g_loss = cut_by(way)
    report = verified(world)
    assert report.passed == (way in ("detach", "data", "no_grad")), report
    assert report.passed or len(report.problems) == 1 and report.cuts[0] in report.problems[0]
    assert len(report.cuts) == 1 and "in g_loss at test_verify.py:" in report.cuts[0]
    assert "of the batch" not in report.cuts[0]
    assert ("of a tensor of shape (6, 1)" in report.cuts[0]) == (way not in ("item", "no_grad"))
    assert "on_real" in report.cuts[0]
    world.g_loss = cut_by("not at all")
    report = verified(world)
    assert report.passed and report.cuts == []


def test_a_part_that_is_cut_and_too_small_for_a_difference_is_a_note():
    """The line is named, as by the warning of a call. The control, where nothing is cut, has no note."""
    world = warm_world()

    def d_loss_with(cut):
        return lambda D, real, fake: softplus(-D(real)).mean() + softplus(D(fake)).mean() + 1e-9 * D(cut(fake)).mean()

    world.d_loss = d_loss_with(lambda fake: fake.data)
    report = verified(world)
    assert report.passed and report.cuts == [] and len(report.notes) == 1
    assert "A loss detaches a part of what it returns: d_loss at test_verify.py:" in report.notes[0]
    world.d_loss = d_loss_with(lambda fake: fake)
    assert verified(world).notes == []


@pytest.mark.parametrize("last", [torch.nn.Sigmoid(), torch.nn.Identity()])
def test_a_sigmoid_before_a_loss_on_logits_is_a_note(last):
    """The derivative is right, and so the check passes; the control has no note."""
    torch.manual_seed(0)
    D, G = torch.nn.Sequential(torch.nn.Linear(2, 1, dtype=F64), last), torch.nn.Linear(2, 2, dtype=F64)
    unrolled = UnrolledGeneratorLoss(D, torch.optim.SGD(D.parameters(), lr=0.5), *non_saturating, steps=2)
    report = verify(unrolled, torch.randn(6, 2, dtype=F64), G(torch.randn(6, 2, dtype=F64)))
    assert report.passed, report
    assert ["output comes from Sigmoid" in note for note in report.notes] == [True] * isinstance(last, torch.nn.Sigmoid)


def test_what_detaches_a_constant_is_no_cut():
    """ones_like, full_like, sizes and the like of a tensor with a graph depend on no value of it."""
    world = warm_world()

    def d_loss(D, real, fake):
        on_real, on_fake = D(real), D(fake)
        assert on_fake.shape == on_real.shape and len(on_fake) and on_fake.new_zeros(1).item() == 0
        bce = torch.nn.functional.binary_cross_entropy_with_logits
        return bce(on_real, torch.ones_like(on_real)) + bce(on_fake, torch.full_like(on_fake, 0.1))

    world.d_loss = d_loss
    world.g_loss = cut_by("detach")  # so that the differences are told about cuts at all
    assert all("on_real = D(real).tanh().detach()" in one for one in verified(world).cuts)


# The controls: an unroll that is wrong


def test_a_wrong_derivative_fails(monkeypatch):
    """The cotangent of one step is dropped."""
    pullback = unroll.Unroll.pullback
    monkeypatch.setattr(unroll.Unroll, "pullback", lambda *given, **flags: (pullback(*given, **flags), None)[1])
    failing("The derivative is not that of real steps", world=warm_world())


def test_a_slightly_wrong_derivative_fails(monkeypatch):
    """One percent in the sensitivity of fake."""
    pairs = unroll.Sensitivity.pairs
    monkeypatch.setattr(unroll.Sensitivity, "pairs", lambda self: ((t, 1.01 * g) for t, g in pairs(self)))
    failing("The derivative is not that of real steps", "please report this", world=warm_world())


def test_a_wrong_value_fails(monkeypatch):
    """A rule that takes steps a millionth too long."""
    descend = Adam.descend

    def longer(self, numbers, param, grad, *before):
        new, *after = descend(self, numbers, param, grad, *before)
        return new + 1e-6 * (new - param), *after

    monkeypatch.setattr(Adam, "descend", longer)
    failing("The value is not that of real steps", world=warm_world())


class Stopped(Exception):
    """Raised in the middle."""


@pytest.mark.parametrize("error", [Stopped(), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("at", [1, 4, 9])
def test_whatever_raises_everything_is_put_back(at, error):
    """In the watched steps, in the call, in shifted steps."""
    world, count = warm_world("batchnorm_two_batches"), itertools.count()
    d_loss = world.d_loss

    def raising(*batch):
        value = d_loss(*batch)
        if next(count) == at:
            raise error
        return value

    world.d_loss = raising
    before = snapshot(world)
    if at == 4 and isinstance(error, Exception):
        assert not verified(world).passed  # real steps went well, so this is the unroll's failure
    else:
        with pytest.raises(type(error)):
            verified(world)
    assert changed(before, snapshot(world)) == []
    assert not is_unrolling()


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_progress(stream, monkeypatch):
    """A line that counts on a terminal, and is gone at the end; the control is a stream that is no terminal."""
    monkeypatch.setattr(progress, "_PATIENCE", -1.0)
    monkeypatch.setattr(sys, "stderr", stream())
    assert verified(warm_world())
    said = sys.stderr.getvalue()
    if stream is Terminal:
        first, *_, last = said.split("\r")[1:]
        assert first.startswith("unroll_wrap.verify: 1 runs of 3 real steps, ") and last == "\x1b[K"
        assert said.count("\r") == 6
    else:
        assert said == ""


def test_no_steps_are_noted():
    """A schedule may say so; the control has steps."""
    world = warm_world()
    assert verified(world, steps=0).notes == ["K is 0, so there are no steps to verify. Pass steps=5, say."]
    assert verified(world).notes == []
