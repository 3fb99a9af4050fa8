"""diagnose: every number against an independent computation, a sentence of advice, a plot."""

import itertools
import random
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import reference
import torch
from checks import MODES, call, oracle, unrolled_of, warm_world
from matplotlib import pyplot
from snapshot import changed, snapshot
from torch import nn

from unroll_wrap import (
    Compiled,
    Diagnosis,
    FiniteDifference,
    Recompute,
    Store,
    Truncate,
    UnrolledGeneratorLoss,
    diagnose,
    non_saturating,
)
from unroll_wrap.diagnostics.peak_memory import PeakMemory

STEPS = 3


def by_hand(world):
    """d_loss along real steps, g_loss after them, and the gradients with respect to fake by its coordinates."""
    real, fake = world.batch()
    leaf = fake.detach().clone()
    world.draw = lambda i: (real, leaf)
    twins, d_losses = reference.copies(world.discriminator, world.optimizer), []
    for _ in range(STEPS):
        d_losses.append(world.d_loss(twins.discriminator, real, leaf).item())
        reference.real_step(twins, world.d_loss, (real, leaf), {})
    ways = reference.axes([leaf])
    total = [
        reference.central_difference(lambda: oracle(reference.value, world, steps=STEPS), [leaf], way).slope
        for way in ways
    ]
    world.inputs, gradients = [leaf.requires_grad_()], []
    for steps in (STEPS, 0):
        gradients += oracle(reference.first_term, world, steps=steps)
    first, plain = (g.flatten() for g in gradients)
    return d_losses, oracle(reference.value, world, steps=STEPS).item(), torch.tensor(total).double(), first, plain


@pytest.mark.parametrize(
    "backward", [Store(), Recompute(), Recompute(every=2), FiniteDifference(central=True), Compiled()], ids=str
)
def test_the_numbers(backward, monkeypatch):
    """Those of real steps, whatever the way back: also where d_loss runs more often than K times, or once."""
    monkeypatch.setattr(torch._inductor, "compile", lambda graph, inputs: graph)
    d_losses, g_loss, total, first, plain = by_hand(warm_world())
    world = warm_world()
    before, state = snapshot(world), torch.get_rng_state()
    found = diagnose(unrolled_of(world, steps=STEPS, backward=backward), *world.batch())
    assert changed(before, snapshot(world)) == [] and torch.equal(state, torch.get_rng_state())
    second = total - first
    assert found.steps == STEPS
    assert found.d_losses == pytest.approx(d_losses, rel=1e-12)
    assert found.g_loss == pytest.approx(g_loss, rel=1e-12)
    assert found.first_term == pytest.approx(first.norm().item(), rel=1e-6)
    assert found.second_term == pytest.approx(second.norm().item(), rel=1e-6)
    assert found.share == pytest.approx((second.norm() / (first.norm() + second.norm())).item(), rel=1e-6)
    assert found.cosine == pytest.approx(torch.nn.functional.cosine_similarity(total, plain, dim=0).item(), rel=1e-6)
    assert found.ratio == pytest.approx((total.norm() / plain.norm()).item(), rel=1e-6)
    assert 0.05 < found.share < 0.95 and found.cosine < 0.999 and abs(found.ratio - 1) > 1e-2
    assert 0 < found.seconds < 60 and found.peak_bytes > 0


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize("name", ["mlp", "dropout", "batchnorm_one_batch"])
def test_closures_and_the_plain_call_agree(name, mode):
    """The same user, the batch captured; with the generator run again, the norms are of its parameters' gradient."""
    reports = []
    for way in ("argument", mode):
        world = warm_world(name)
        unrolled = unrolled_of(world, steps=STEPS)
        reports.append(call(world, lambda *batch, u=unrolled, **options: diagnose(u, *batch, **options), way))
    one, other = reports
    assert other.d_losses == one.d_losses and other.g_loss == one.g_loss
    if mode == "closure":
        assert other.cosine == pytest.approx(one.cosine, rel=1e-9) and other.share == pytest.approx(one.share, rel=1e-9)
    else:
        assert abs(other.share - one.share) > 1e-6 and 0 < other.share < 1


@pytest.mark.parametrize("average", [False, True])
def test_what_the_losses_draw_is_no_effect_of_the_steps(average):
    """Dropout in D, augmentation in both losses, and steps too short to matter: the gradient is that at K = 0."""
    torch.manual_seed(0)
    G = nn.Linear(3, 4)
    D = nn.Sequential(nn.Linear(4, 32), nn.LeakyReLU(0.2), nn.Dropout(0.4), nn.Linear(32, 1))

    def augmented(x):
        return x + 0.1 * torch.randn_like(x) + float(np.random.rand()) + random.random()

    def d_loss(D, real, fake):
        return non_saturating.d_loss(D, augmented(real), augmented(fake))

    def g_loss(D, real, fake):
        return non_saturating.g_loss(D, real, augmented(fake))

    still = torch.optim.SGD(D.parameters(), lr=1e-9)
    unrolled = UnrolledGeneratorLoss(D, still, d_loss, g_loss, steps=1 if average else STEPS, average=average)
    found = diagnose(unrolled, torch.randn(16, 4), G(torch.randn(16, 3)))
    assert found.cosine == pytest.approx(1.0, abs=1e-5) and found.ratio == pytest.approx(1.0, abs=1e-5)
    assert max(found.spread["cosine"], found.spread["ratio"]) < 1e-5
    moving = UnrolledGeneratorLoss(D, torch.optim.SGD(D.parameters(), lr=3.0), d_loss, g_loss, steps=STEPS)
    assert diagnose(moving, torch.randn(16, 4), G(torch.randn(16, 3))).cosine < 0.999


def test_what_is_left_out_by_choice():
    """stop_gradient has no second term, Truncate a smaller one."""
    world = warm_world()
    batch = world.batch()
    shares = {
        name: diagnose(unrolled_of(world, steps=STEPS, **options), *batch).second_term
        for name, options in {"all": {}, "one": {"backward": Truncate(1)}, "none": {"stop_gradient": True}}.items()
    }
    assert shares["none"] == 0.0 and abs(shares["one"] - shares["all"]) > 1e-3


def test_no_steps_and_no_fake():
    """Errors: got, allowed, do."""
    world = warm_world()
    with pytest.raises(ValueError, match="steps is 0.*steps=5"):
        diagnose(unrolled_of(world, steps=0), *world.batch())
    real, fake = world.batch()
    with pytest.raises(ValueError, match="fake arrives detached"):
        diagnose(unrolled_of(world, steps=2), real, fake.detach())


def test_a_loss_whose_fake_is_unused_at_first():
    """The terms of the gradient are for different tensors: what is not reached counts as zero."""
    world = warm_world()
    world.g_loss = lambda D, real, fake: torch.nn.functional.softplus(-D(real)).mean()
    found = diagnose(unrolled_of(world, steps=STEPS), *world.batch())
    assert found.first_term == 0.0 and found.second_term > 1e-3 and found.share == 1.0


def test_it_is_quiet(capsys):
    """It may run in a training loop: the report is for print()."""
    world = warm_world()
    found = diagnose(unrolled_of(world, steps=STEPS), *world.batch())
    assert capsys.readouterr().out == ""
    lines = str(found).splitlines()
    assert len(lines) == 5 and lines[0].startswith("unroll_wrap.diagnose: K = 3") and lines[-1].strip() == found.advice


# Memory


def test_peak_memory_of_known_tensors():
    """Two alive at one time, of three."""
    kept = torch.zeros(1000)
    with PeakMemory() as memory:
        a = torch.zeros(1000)
        b = a + kept
        del a
        view = b.view(10, 100)
        c = torch.ones(500)
        del b, view, c
    assert memory.peak == 8000
    with PeakMemory() as memory:
        kept.add_(1)
        kept.view(10, 100)
    assert memory.peak == 0


def test_recompute_holds_the_activations_of_one_step():
    """Store's memory grows with K; Recompute's by parameters and optimizer state alone."""
    D = torch.nn.Sequential(torch.nn.Linear(2, 50), torch.nn.Tanh(), torch.nn.Linear(50, 1)).double()
    world = warm_world()
    world.discriminator, world.optimizer = D, torch.optim.SGD(D.parameters(), lr=0.1)
    batch = torch.randn(500, 2).double(), world.generator(torch.randn(500, 2).double())

    def peak(steps, backward):
        return diagnose(unrolled_of(world, steps=steps, backward=backward), *batch).peak_bytes

    assert peak(20, Store()) > 2.5 * peak(4, Store())
    assert peak(20, Recompute()) < 1.1 * peak(4, Recompute())


# Advice


def diagnosis(d_losses=(1.0, 0.8, 0.7), share=0.3, cosine=0.9, **changes):
    values = {"steps": 3, "g_loss": 1.0, "first_term": 1.0, "second_term": 1.0, "ratio": 1.0, "seconds": 0.1}
    return Diagnosis(d_losses=list(d_losses), share=share, cosine=cosine, peak_bytes=1, **{**values, **changes})


ADVICE = {
    "The gradient is 0:": diagnosis(first_term=0.0, second_term=0.0, share=0.0, cosine=0.0),
    "The first term is all there is": diagnosis(second_term=0.0, share=0.0),
    "hardly moves": diagnosis(d_losses=(1.0, 1.0 - 1e-6, 1.0 - 2e-6)),
    "D's learning rate is too high": diagnosis(d_losses=(1.0, 2.0, 3.0)),
    "1.9e+04 times the plain one, which is implausible": diagnosis(ratio=19_000.0),
    "0.001 times the plain one, which is implausible": diagnosis(ratio=0.001),
    "unrolling changes little at this moment": diagnosis(share=0.001, cosine=0.999),
    "0.5 times the plain norm at cosine 1.00: stop_gradient=True": diagnosis(share=0.001, cosine=0.999, ratio=0.5),
    "1 times the plain norm at cosine 0.50: stop_gradient=True": diagnosis(share=0.001, cosine=0.5),
    "points where the plain one does, at 2.14 times its norm": diagnosis(cosine=1.0, ratio=2.14),
    "30.0% of the sum of both, and the gradient turns by 26 degrees: unrolling matters": diagnosis(),
}


@pytest.mark.parametrize("sentence", ADVICE)
def test_advice(sentence):
    """One sentence for each finding, and no other."""
    for other, found in ADVICE.items():
        assert (sentence in found.advice) == (other == sentence)
        assert found.advice.endswith(".") and found.advice in str(found)


def test_advice_in_training():
    """A discriminator that hardly learns, and one that learns too fast."""
    advice = []
    for lr in (1e-9, 0.02, 30.0):
        world = warm_world("mlp", "sgd")
        world.optimizer.param_groups[0]["lr"] = lr
        advice.append(diagnose(unrolled_of(world, steps=STEPS), *world.batch()).advice)
    assert "hardly moves" in advice[0] and "hardly moves" not in advice[1] and "too high" in advice[2]


def test_a_growth_within_the_noise_is_none():
    """Label noise moves d_loss from step to step; one that every batch shows is one."""
    for others, words in (([0.2, -0.1], "unrolling matters"), ([0.2, 0.5], "d_loss grows")):
        found = diagnosis(d_losses=(1.0, 0.9, 1.3), growths=[0.3, *others])
        assert words in found.advice


def test_label_noise_in_training():
    """Labels that flip at random. The control: by one batch alone, d_loss grows for some of the seeds."""
    world, found = warm_world("mlp", "sgd"), []
    world.optimizer.param_groups[0]["lr"] = 1e-3

    def noisy(D, real, fake):
        labels = torch.rand(len(real), 1, dtype=torch.float64)
        bce = torch.nn.functional.binary_cross_entropy_with_logits
        return bce(3 * D(real), labels) + bce(3 * D(fake), 1 - labels)

    world.d_loss = noisy
    for seed in range(6):
        torch.manual_seed(seed)
        found.append(diagnose(unrolled_of(world, steps=STEPS), *world.batch(), repeats=4))
    assert not any("d_loss grows" in one.advice for one in found)
    assert any("d_loss grows" in replace(one, growths=one.growths[:1]).advice for one in found)


def test_by_the_fake_alone():
    """R1 leaves requires_grad on real, as a leaf: what is measured is what G gets; wrt asks for anything else."""
    world = warm_world()
    real, fake = world.batch()
    unrolled = unrolled_of(world, steps=STEPS)
    found = diagnose(unrolled, real, fake, repeats=0)
    marked = real.clone().requires_grad_()
    again = diagnose(unrolled, marked, fake, repeats=0)
    assert (again.first_term, again.second_term) == (found.first_term, found.second_term)
    assert diagnose(unrolled, marked, fake, wrt=[marked, fake], repeats=0).second_term > found.second_term


def test_an_old_fake_is_named():
    """Not 0, 0 and nan; the control uses what was passed."""
    world = warm_world()
    d_loss, g_loss, old = world.d_loss, world.g_loss, [world.draw(0)[1]]
    world.d_loss = lambda D, real, fake: d_loss(D, real, old[0])
    world.g_loss = lambda D, real, fake: g_loss(D, real, old[0])
    with pytest.raises(ValueError, match=r"a tensor of an earlier graph: .*of shape \(6, 2\).* at worlds.py:"):
        diagnose(unrolled_of(world, steps=STEPS), *world.batch())
    real, fake = world.batch()
    old[0] = fake
    assert diagnose(unrolled_of(world, steps=STEPS), real, fake).second_term > 0


@pytest.mark.parametrize("mode", ["argument", "rerun"])
def test_it_says_how_far_the_batch_decides(mode):
    """The numbers are those of the batch itself; the spread is that of others, and 0 where all rows are the same."""
    world = warm_world("conditional" if mode == "argument" else "dropout")
    before, state = snapshot(world), torch.get_rng_state()

    def found(**options):
        unrolled = unrolled_of(world, steps=STEPS)
        return call(world, lambda *batch, **given: diagnose(unrolled, *batch, **given), mode, **options)

    one, several = found(repeats=0), found(repeats=4)
    assert changed(before, snapshot(world)) == [] and torch.equal(state, torch.get_rng_state())
    assert (
        one.spread == {}
        and len(one.growths) == 1
        and len(several.growths) == 5
        and f"± {several.spread['cosine']:.2g}" in str(several)
    )
    assert (several.share, several.cosine, several.ratio) == (one.share, one.cosine, one.ratio)
    assert all(several.spread[name] > 0 for name in ("share", "cosine", "ratio"))
    assert found(repeats=4).spread == several.spread


def test_no_spread_where_all_rows_are_the_same():
    world = warm_world()
    draw = world.draw
    world.draw = lambda i: tuple(x[:1].expand(6, 2) for x in draw(i))
    found = diagnose(unrolled_of(world, steps=STEPS), *world.batch(), repeats=3)
    assert max(found.spread.values()) < 1e-12


@pytest.mark.parametrize("repeats", [-1, 1.5, True])
def test_repeats_that_are_none(repeats):
    world = warm_world()
    with pytest.raises(ValueError, match="repeats is .*Pass a whole number"):
        diagnose(unrolled_of(world, steps=STEPS), *world.batch(), repeats=repeats)


def test_scalars_for_a_logger():
    """Flat, prefixed, all numbers."""
    flat = diagnosis().scalars("gan/")
    assert flat["gan/share"] == 0.3 and flat["gan/d_loss_first"] == 1.0 and flat["gan/d_loss_last"] == 0.7
    assert all(key.startswith("gan/") and isinstance(value, float) for key, value in flat.items())


def test_plot():
    """The inner trajectory, on an axis of the caller's or on a new one."""
    matplotlib.use("Agg")
    found = diagnosis()
    _, given = pyplot.subplots()
    for ax in (found.plot(given), found.plot()):
        (line,) = ax.lines
        assert list(itertools.chain(line.get_xdata())) == [0, 1, 2] and list(line.get_ydata()) == found.d_losses
        assert ax.get_xlabel() == "inner step" and ax.get_ylabel() == "d_loss" and "30.0%" in ax.get_title()
    assert found.plot(given) is given
    pyplot.close("all")
