"""What a first call warns of: a part that a loss detaches itself, and a first step of Adam that outweighs the rest."""

import functools
import sys
import warnings
from pathlib import Path

import pytest
import torch
from checks import call, unrolled_of, warm_world
from problems import PROBLEMS, softplus
from torch import nn

import unroll_wrap
from unroll_wrap import EvalMode, FreshState, PartialDetach, SecondTermMissing, UnrolledGeneratorLoss, UnrollWarning

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from false_alarms import game  # noqa: E402

STEPS = 2


def penalised(D, real, fake):
    x = (0.5 * real.data + 0.5 * fake.data).requires_grad_()
    (g,) = torch.autograd.grad(D(x).sum(), x, create_graph=True)
    return softplus(-D(real)).mean() + softplus(D(fake)).mean() + (g.norm(2, 1) - 1).pow(2).mean()


def penalised_through_the_guard(D, real, fake):
    x = 0.5 * unroll_wrap.detach(real) + 0.5 * unroll_wrap.detach(fake)
    x = x if x.requires_grad else x.requires_grad_()
    (g,) = torch.autograd.grad(D(x).sum(), x, create_graph=True)
    return softplus(-D(real)).mean() + softplus(D(fake)).mean() + (g.norm(2, 1) - 1).pow(2).mean()


def penalised_by_a_variable(D, real, fake):
    """As in much code for WGAN-GP, where Variable detaches what it is given."""
    x = torch.autograd.Variable(0.5 * real + 0.5 * fake, requires_grad=True)
    (g,) = torch.autograd.grad(D(x).sum(), x, create_graph=True)
    return softplus(-D(real)).mean() + softplus(D(fake)).mean() + (g.norm(2, 1) - 1).pow(2).mean()


def penalised_by_a_variable_of_data(D, real, fake):
    x = torch.autograd.Variable(0.5 * real.data + 0.5 * fake.data, requires_grad=True)
    (g,) = torch.autograd.grad(D(x).sum(), x, create_graph=True)
    return softplus(-D(real)).mean() + softplus(D(fake)).mean() + (g.norm(2, 1) - 1).pow(2).mean()


def penalised_by_a_copy(D, real, fake):
    x = (0.5 * real + 0.5 * fake).new_tensor(0.5 * real + 0.5 * fake, requires_grad=True)
    (g,) = torch.autograd.grad(D(x).sum(), x, create_graph=True)
    return softplus(-D(real)).mean() + softplus(D(fake)).mean() + (g.norm(2, 1) - 1).pow(2).mean()


def matching(D, real, fake):
    return (D(real).tanh().detach() - D(fake).tanh()).pow(2).mean()


def relativistic(D, real, fake):
    return softplus(-(D(real) - D(fake).detach())).mean() + softplus(D(fake)).mean()


def logging_only(D, real, fake):
    logged = D(fake).detach().mean()
    assert logged.item() is not None
    return softplus(-D(real)).mean() + softplus(D(fake)).mean()


def weighted(D, real, fake):
    with torch.no_grad():
        weight = D(fake).sigmoid()
    return softplus(-D(real)).mean() + (weight * softplus(D(fake))).mean()


@torch.no_grad()
def length(D):
    return torch.stack([p.norm() for p in D.parameters()]).norm()


def scaled(D, real, fake):
    return (1 + length(D)) * (softplus(-D(real)).mean() + softplus(D(fake)).mean())


def of_data(D, real, fake):
    return softplus(D(fake)).mean() * sum(p.data.norm() for p in D.parameters()) + softplus(-D(real)).mean()


def logging_without_grad(D, real, fake):
    with torch.no_grad():
        assert D(fake).mean().item() is not None
    return softplus(-D(real)).mean() + softplus(D(fake)).mean()


DETACH, NO_GRAD = "unroll_wrap.detach(x) in place of x.detach() or x.data", "unroll_wrap.no_grad() in place of torch"
VARIABLE = "x.requires_grad_() in place of torch.autograd.Variable"
# Which loss, the loss, a part of the line that the warning names, and of what it says to do.
CUTS = {
    "penalty": ("d_loss", penalised, ".data", DETACH),
    "matching": ("g_loss", matching, "detach()", DETACH),
    "relativistic": ("d_loss", relativistic, "detach()", DETACH),
    "no_grad": ("d_loss", weighted, "with torch.no_grad():", NO_GRAD),
    "decorator": ("d_loss", scaled, "length(D)", NO_GRAD),
    "data": ("d_loss", of_data, "p.data.norm()", DETACH),
    "Variable": ("d_loss", penalised_by_a_variable, "", VARIABLE),
    "data in it": ("d_loss", penalised_by_a_variable_of_data, ".data", DETACH),
}


def balanced(D, real, fake):
    """Terms weighed by the lengths of their gradients, without a graph."""
    one, other = softplus(-D(real)).mean(), softplus(D(fake)).mean()
    p = next(D.parameters())
    a, b = (torch.autograd.grad(term, p, retain_graph=True)[0].norm() for term in (one, other))
    return one + other * a / (b + 1e-4)


def balanced_with_a_graph(D, real, fake):
    one, other = softplus(-D(real)).mean(), softplus(D(fake)).mean()
    p = next(D.parameters())
    a, b = (torch.autograd.grad(term, p, create_graph=True)[0].norm() for term in (one, other))
    return one + other * a / (b + 1e-4)


CUTS["create_graph"] = "d_loss", balanced, "torch.autograd.grad", "pass create_graph=True"


def labelled(D, real, fake):
    """Only the shape of what is detached counts."""
    logits = D(fake)
    ones, zeros = torch.ones_like(logits.detach()), logits.data.new_zeros(logits.shape)
    with torch.no_grad():
        noise = torch.rand_like(logits)
    weight = torch.ones(1).double().expand_as(D(real).detach())
    return (weight * softplus(-ones * D(real))).mean() + softplus(logits + zeros + 0.1 * noise).mean()


def reused(D, real, fake):
    """Leaves and views of them, and what torch.func wraps."""
    x = real.detach().clone().requires_grad_()
    (g,) = torch.autograd.grad(D(x.view(x.shape)).sum() + D(x).sum(), x, create_graph=True)
    each = torch.func.vmap(torch.func.grad(lambda y: D(y[None]).sum()))(fake)
    return softplus(-D(real)).mean() + softplus(D(fake)).mean() + g.square().mean() + each.square().mean()


WHOLE = {
    "create_graph": ("d_loss", balanced_with_a_graph),
    "labels": ("d_loss", labelled),
    "leaves": ("d_loss", reused),
}
WHOLE |= {"guard": ("d_loss", penalised_through_the_guard), "log": ("d_loss", logging_only)}
WHOLE |= {"log without grad": ("d_loss", logging_without_grad)}


def warned(world, unrolled=None, mode="argument"):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(world, unrolled or unrolled_of(world, steps=STEPS), mode)
    return caught


@pytest.mark.parametrize("detached", [True, False])
def test_a_part_that_one_loss_detaches_and_another_uses(detached):
    """Features of real that D's loss stores, and the generator's matches; the control keeps them for a log alone."""
    world, kept = warm_world(), []

    def d_loss(D, real, fake):
        scores = D(real)
        kept.append(scores.tanh().detach())
        return softplus(-scores).mean() + softplus(D(fake)).mean()

    world.d_loss = d_loss
    if detached:
        world.g_loss = lambda D, real, fake: (kept[-1] - D(fake).tanh()).pow(2).mean()
    found = warned(world)
    assert [w.category for w in found] == ([PartialDetach] if detached else [])
    assert not detached or "g_loss at test_call_warnings.py" in str(found[0].message)


def test_a_copy_that_new_tensor_makes():
    """Torch warns of the copy as such, too."""
    world = warm_world()
    world.d_loss = penalised_by_a_copy
    assert PartialDetach in [w.category for w in warned(world)]


@pytest.mark.parametrize("mode", ["argument", "closure"])
@pytest.mark.parametrize("name", CUTS)
def test_a_part_that_a_loss_detaches(name, mode):
    """Once, with the line and the remedy for this cause alone; the second call is silent."""
    which, loss, line, remedy = CUTS[name]
    world = warm_world()
    setattr(world, which, loss)
    unrolled = unrolled_of(world, steps=STEPS)
    (found,) = warned(world, unrolled, mode)
    assert found.category is PartialDetach and issubclass(PartialDetach, UnrollWarning)
    text = str(found.message)
    place, _, told = text.partition(remedy)
    assert f"{which} at test_call_warnings.py:" in place and line in place and told
    assert not any(other in text for *_, other in CUTS.values() if other != remedy)
    assert warned(world, unrolled, mode) == []


@pytest.mark.parametrize("name", WHOLE)
def test_what_cuts_nothing_of_the_loss(name):
    """The guard inside an unroll, and a number for a log."""
    which, loss = WHOLE[name]
    world = warm_world()
    setattr(world, which, loss)
    assert warned(world) == []


@pytest.mark.parametrize("name", PROBLEMS)
def test_no_problem_of_the_table_is_accused(name):
    """Norms, power iterations, statistics and penalties of their own detach what they mean to."""
    world = warm_world(name)
    world.before_call()
    assert warned(world) == []


def test_a_layer_may_detach():
    """A straight-through estimator in D is meant."""

    class Rounded(nn.Module):
        def forward(self, x):
            return x + (x.round() - x).detach()

    world = warm_world()
    world.discriminator.insert(1, Rounded())
    assert warned(world) == []


@pytest.mark.parametrize("trains", [True, False])
def test_a_layer_of_a_generator_may_detach(trains):
    """A generator that the losses run has its power iterations, and a loss that is a module has no layers."""

    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.full((1,), 0.9, dtype=torch.float64), requires_grad=trains)
            self.register_buffer("mean", torch.zeros(1, dtype=torch.float64))

        def forward(self, x):
            with torch.no_grad():
                self.mean.lerp_(x.mean(), 0.1)
                size = x.abs().max()
            return self.weight * x / size

    world, normed = warm_world(), Normed()
    world.d_loss = lambda D, real, fake: softplus(-D(real)).mean() + softplus(D(normed(fake))).mean()
    assert [w.category for w in warned(world)] == ([] if trains else [PartialDetach])


def test_a_whole_detach_has_its_own_warning():
    world = warm_world()
    world.d_loss = lambda D, real, fake: softplus(-D(real)).mean() + softplus(D(fake.detach())).mean()
    assert [w.category for w in warned(world)] == [SecondTermMissing]


@pytest.mark.parametrize("steps", [1, 2])
def test_a_penalty_does_not_hide_that_the_generator_is_missing(steps):
    """R1 in a closure makes real a leaf that requires grad; a fake made under no_grad has no graph all the same."""
    world = warm_world()
    real, fake = world.batch()

    def d_loss(D, fake):
        real.requires_grad_()
        (g,) = torch.autograd.grad(D(real).sum(), real, create_graph=True)
        return softplus(-D(real)).mean() + softplus(D(fake)).mean() + g.square().mean()

    def call(fake):
        unrolled = unrolled_of(world, steps=steps)
        return unrolled(d_loss=lambda D: d_loss(D, fake), g_loss=lambda D: softplus(-D(fake)).mean())

    with pytest.raises(ValueError, match="Neither loss depends on the generator"):
        call(fake.detach())
    real = real.detach()
    call(fake).backward()  # the control: with its graph


def test_only_the_first_term_is_asked_for():
    """There D's loss is detached anyway."""
    world = warm_world()
    world.d_loss = penalised
    assert warned(world, unrolled_of(world, steps=STEPS, stop_gradient=True)) == []


def test_a_call_for_the_value_alone_leaves_the_warning_to_the_next():
    """Without gradients nothing is cut; the call after it is the first that can tell."""
    world = warm_world()
    world.g_loss = matching
    unrolled = unrolled_of(world, steps=STEPS)
    with torch.no_grad():
        assert warned(world, unrolled) == []
    assert [w.category for w in warned(world, unrolled)] == [PartialDetach]
    assert warned(world, unrolled) == []


def test_verify_says_it_and_leaves_the_warning_to_the_call():
    """With the size of what is cut: the derivative with the cut, and without."""
    world = warm_world()
    world.g_loss = matching
    unrolled = unrolled_of(world, steps=STEPS)
    report = unroll_wrap.verify(unrolled, *world.batch())
    assert report.passed and "the derivative is" in report.cuts[0] and "would be" in report.cuts[0]
    assert [w.category for w in warned(world, unrolled)] == [PartialDetach]
    numbers = [float(word) for word in report.cuts[0].replace(",", "").split() if _is_number(word)]
    assert len(numbers) >= 2 and abs(numbers[-2] - numbers[-1]) > 1e-3 * abs(numbers[-1])


def _is_number(word):
    try:
        float(word)
    except ValueError:
        return False
    return True


# The first step from empty state


def fresh(seed, made_by, warm=30):
    """What a call warns of, and the length of its gradient."""
    made = game("dcgan", seed, double=True, warm=warm, rows=16)
    adam = functools.partial(torch.optim.Adam, lr=2e-4, betas=(0.5, 0.999))
    optimizer = adam if made_by == "callable" else made.optimizer
    if made_by == "fresh":
        optimizer = adam(made.D.parameters())
    unrolled = UnrolledGeneratorLoss(made.D, optimizer, *unroll_wrap.non_saturating, steps=5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (grad,) = torch.autograd.grad(unrolled(*made.batch, **made.labels), made.batch[1])
    return [w.category for w in caught], float(grad.norm())


@pytest.mark.parametrize("made_by", ["callable", "fresh"])
def test_a_first_step_that_outweighs_the_rest(made_by):
    """In 64 bits, where machines agree; the controls are a seed whose first step does not, and the live optimizer."""
    said, long = fresh(32, made_by)
    assert said == [FreshState]
    quiet, usual = fresh(31, made_by)
    assert quiet == [] and long > 2.8 * usual
    said, stepped = fresh(32, "live")
    assert said == [] and stepped < long / 3


# A player that an evaluation has left in eval mode


def test_a_discriminator_in_eval_mode():
    """In every call, with the layers; the controls train, freeze one layer, or have none that would act otherwise."""
    world = warm_world("batchnorm_one_batch")
    assert warned(world, unrolled_of(world, steps=STEPS)) == []
    norm = next(m for m in world.discriminator.modules() if isinstance(m, nn.BatchNorm2d))
    norm.eval()
    assert warned(world, unrolled_of(world, steps=STEPS)) == []
    world.discriminator.eval()
    unrolled = unrolled_of(world, steps=STEPS)
    for _ in range(2):
        assert [w.category for w in warned(world, unrolled)] == [EvalMode]
    (said,) = warned(world, unrolled)
    assert "D is in eval mode" in str(said.message) and "BatchNorm2d" in str(said.message)
    plain = warm_world()
    plain.discriminator.eval()
    assert warned(plain, unrolled_of(plain, steps=STEPS)) == []
