"""The likeliest mistakes with every public call: an error that says what to do, and leaves everything as it was.

Those of a loop in the middle of training (NaN, devices, dry iterators and others) are in test_bad_input.py.
"""

import copy
import functools

import pytest
import torch
from checks import warm_world
from refusals import refused
from torch import nn

from unroll_wrap import (
    Compiled,
    FiniteDifference,
    LogitsExpected,
    Objective,
    Recompute,
    Store,
    Truncate,
    UnrolledGeneratorLoss,
    UpdateRule,
    diagnose,
    hinge,
    least_squares,
    minimax,
    non_saturating,
    predict,
    register_rule,
    relativistic,
    verify,
)
from unroll_wrap.optimizers.rules.sgd import SGD

CONSTRUCTOR = {
    "arguments swapped": (
        lambda w: UnrolledGeneratorLoss(w.optimizer, w.discriminator),
        ["discriminator is an instance of Adam", "opt_D"],
    ),
    "the class of D": (
        lambda w: UnrolledGeneratorLoss(nn.Sequential, w.optimizer),
        ["discriminator is the class Sequential", "an instance"],
    ),
    "D.parameters() as D": (
        lambda w: UnrolledGeneratorLoss(w.discriminator.parameters(), w.optimizer),
        ["generator object Module.parameters", "Pass an instance of torch.nn.Module"],
    ),
    "D.parameters() as its optimizer": (
        lambda w: UnrolledGeneratorLoss(w.discriminator, w.discriminator.parameters()),
        ["generator object Module.parameters", "Pass the torch.optim.Optimizer that steps the discriminator"],
    ),
    "the class of the optimizer": (
        lambda w: UnrolledGeneratorLoss(w.discriminator, torch.optim.Adam),
        ["optimizer is the class Adam", "Pass the torch.optim.Optimizer", r"functools.partial\(Adam"],
    ),
    "the optimizer forgotten": (
        lambda w: UnrolledGeneratorLoss(w.discriminator, w.d_loss, w.g_loss),
        ["called with the discriminator's parameters", "missing", r"\(D, opt_D"],
    ),
    "the class of a criterion": (
        lambda w: UnrolledGeneratorLoss(w.discriminator, w.optimizer, nn.BCEWithLogitsLoss),
        ["d_loss is the class BCEWithLogitsLoss", "Pass a function"],
    ),
    "the list of them": (
        lambda w: UnrolledGeneratorLoss(w.discriminator, list(w.discriminator.parameters())),
        ["Parameter", "Pass the torch.optim.Optimizer"],
    ),
    "G's optimizer": (
        lambda w: UnrolledGeneratorLoss(w.discriminator, torch.optim.Adam(w.generator.parameters())),
        ["none of them is the discriminator's", "Pass the optimizer that steps the discriminator. If that was copied"],
    ),
    "G as D": (
        lambda w: UnrolledGeneratorLoss(w.generator, w.optimizer),
        ["none of them is the discriminator's", "Pass the optimizer"],
    ),
    "a copy of D": (
        lambda w: UnrolledGeneratorLoss(copy.deepcopy(w.discriminator), w.optimizer),
        ["none of them is the discriminator's", "Pass the optimizer"],
    ),
    "the optimizer's name": (lambda w: UnrolledGeneratorLoss(w.discriminator, "adam"), ["optimizer is 'adam'", "Pass"]),
    "an objective not unpacked": (
        lambda w: UnrolledGeneratorLoss(w.discriminator, w.optimizer, hinge),
        ["d_loss is a pair of losses", "Pass a function", r"\*non_saturating"],
    ),
    "K in the place of a loss": (
        lambda w: UnrolledGeneratorLoss(w.discriminator, w.optimizer, 5),
        ["d_loss is 5", "function", "passed by its name: steps=5"],
    ),
    "an objective's name": (
        lambda w: UnrolledGeneratorLoss(w.discriminator, w.optimizer, "hinge"),
        ["d_loss is 'hinge'", "function", r"\(D, opt_D, \*hinge\)"],
    ),
    "G, D and its optimizer": (
        lambda w: UnrolledGeneratorLoss(w.generator, w.discriminator, w.optimizer),
        ["optimizer is an instance of", "that steps the discriminator, right after it", "No other network is passed"],
    ),
    "the value of a loss": (
        lambda w: UnrolledGeneratorLoss(w.discriminator, w.optimizer, w.d_loss(w.discriminator, *w.batch())),
        ["d_loss is a Tensor", "a value and not the function", "Pass a function"],
    ),
    "the value of a loss in a call": (
        lambda w: alone(w)(*w.batch(), d_loss=w.d_loss, g_loss=w.g_loss(w.discriminator, *w.batch())),
        ["^g_loss is a Tensor", "a value and not the function", "Pass a function"],
    ),
    "K from a config": (
        lambda w: UnrolledGeneratorLoss(w.discriminator, w.optimizer, steps=5.0),
        ["steps is 5.0", "whole"],
    ),
    "the class of a backward": (
        lambda w: UnrolledGeneratorLoss(w.discriminator, w.optimizer, backward=Recompute),
        ["backward is the class Recompute", r"such as Store\(\)"],
    ),
    "the name of a backward": (
        lambda w: UnrolledGeneratorLoss(w.discriminator, w.optimizer, backward="recompute"),
        ["backward is 'recompute'", r"such as Store\(\)"],
    ),
    "a bound for a transform": (
        lambda w: UnrolledGeneratorLoss(w.discriminator, w.optimizer, param_transform=0.01),
        ["param_transform is 0.01", "Pass a function"],
    ),
}


def alone(world, **losses):
    return UnrolledGeneratorLoss(world.discriminator, world.optimizer, steps=2, **losses)


def named(name):
    """A loss of this name."""

    def loss(D, real, fake):
        return D(fake).mean()

    loss.__name__ = name
    return loss


def test_losses_that_arrive_apart():
    """One in the constructor and one in the call are both the user's own; none is minimax; their names may be right."""
    world = warm_world()
    both = alone(world, d_loss=world.d_loss, g_loss=world.g_loss)(*world.batch())
    assert torch.equal(alone(world, d_loss=world.d_loss)(*world.batch(), g_loss=world.g_loss), both)
    game = alone(world, d_loss=minimax.d_loss, g_loss=minimax.g_loss)(*world.batch())
    assert torch.equal(alone(world)(*world.batch()), game)
    alone(world, d_loss=named("d_loss"), g_loss=named("g_loss"))(*world.batch())


@pytest.mark.parametrize("term", [lambda v: v, lambda v: 0.5 * (v - 1)])
def test_own_losses_that_take_logits_after_a_sigmoid(term):
    """Two Sigmoids, in a loss of the user's own; without the first, and with a temperature between them, not a word."""
    bce = torch.nn.functional.binary_cross_entropy_with_logits

    def d_loss(D, real, fake, after=lambda x: x):
        on_real, on_fake = after(D(real)), after(D(fake))
        return term(bce(on_real, torch.ones_like(on_real)) + bce(on_fake, torch.zeros_like(on_fake)))

    plain, ended = warm_world(), with_sigmoid(warm_world(), nn.Sigmoid())
    with pytest.warns(LogitsExpected, match="comes from Sigmoid, and binary_cross_entropy_with_logits") as found:
        alone(ended)(*ended.batch(), d_loss=d_loss, g_loss=ended.g_loss)
    assert found[0].filename == __file__
    alone(plain)(*plain.batch(), d_loss=d_loss, g_loss=plain.g_loss)
    scaled = functools.partial(d_loss, after=lambda p: 8 * p - 4)
    alone(ended)(*ended.batch(), d_loss=scaled, g_loss=ended.g_loss)


def with_sigmoid(world, last):
    world.discriminator.append(last)
    return world


@pytest.mark.parametrize("objective", [minimax, non_saturating, relativistic])
def test_logits_after_a_sigmoid(objective):
    """They train next to nothing, which nobody would see."""
    world = with_sigmoid(warm_world(), nn.Sigmoid())
    unrolled = UnrolledGeneratorLoss(world.discriminator, world.optimizer, *objective)
    says = "comes from Sigmoid.*take logits.*learn next to nothing.*losses of your own loop"
    with pytest.warns(UserWarning, match=says) as found:
        unrolled(*world.batch())
    assert found[0].filename == __file__


def test_no_word_of_logits_elsewhere():
    """The same objectives without it; with it, objectives that take anything, and losses of the user's own."""
    plain, ended = warm_world(), with_sigmoid(warm_world(), nn.Sigmoid())
    UnrolledGeneratorLoss(plain.discriminator, plain.optimizer, *non_saturating)(*plain.batch())
    UnrolledGeneratorLoss(ended.discriminator, ended.optimizer, *least_squares)(*ended.batch())
    unrolled = UnrolledGeneratorLoss(ended.discriminator, ended.optimizer)
    unrolled(*ended.batch(), d_loss=ended.d_loss, g_loss=ended.g_loss)


CALL = {
    "fake forgotten": (lambda u, w, real, fake: u(fake), ["d_loss does not fit", "fake", r"unrolled\(real, fake\)"]),
    "nothing at all": (lambda u, w, real, fake: u(), ["d_loss does not fit", r"unrolled\(real, fake\)"]),
    "fake detached": (lambda u, w, real, fake: u(real, fake.detach()), ["Neither loss", r"fake = G\(z\)"]),
    "real and fake swapped": (lambda u, w, real, fake: u(fake, real), ["real has a graph", "The order is"]),
    "steps misspelled": (
        lambda u, w, real, fake: u(real, fake, step=3),
        ["'step'", "d_loss, g_loss, resample and steps"],
    ),
    "D's loss alone": (
        lambda u, w, real, fake: alone(w, d_loss=w.d_loss)(real, fake),
        ["d_loss was passed and g_loss was not", "Pass both losses"],
    ),
    "G's loss alone": (
        lambda u, w, real, fake: alone(w)(real, fake, g_loss=w.g_loss),
        ["g_loss was passed and d_loss was not", "Pass both losses"],
    ),
    "D's loss alone, examined": (
        lambda u, w, real, fake: verify(alone(w, d_loss=w.d_loss), real, fake),
        ["d_loss was passed and g_loss was not", "Pass both losses"],
    ),
    "the losses exchanged": (
        lambda u, w, real, fake: alone(w)(real, fake, d_loss=named("g_loss"), g_loss=named("d_loss")),
        ["function named g_loss", "The order is"],
    ),
    "D after the batch": (
        lambda u, w, real, fake: u(real, fake, d_loss=lambda real, fake, D: D(fake).mean() - D(real).mean()),
        ["calls a tensor as if it were D", "first argument"],
    ),
    "G for fake": (
        lambda u, w, real, fake: u(real, w.generator),
        ["A loss got an instance of", r"unrolled\(real, G\(z\)\)"],
    ),
    "labels that the loss does not take": (
        lambda u, w, real, fake: u(real, fake, real),
        ["d_loss does not fit", "and no keywords", "labels=labels", "takes D first"],
    ),
    "a name that the loss does not take": (
        lambda u, w, real, fake: u(real, fake, d_loss=lambda D, real, fake, labels: D(fake).mean(), label=real),
        ["d_loss does not fit", "and the keywords label. ", "labels=labels"],
    ),
    "a loss without D": (
        lambda u, w, real, fake: u(real, fake, d_loss=lambda real, fake: fake.mean()),
        ["d_loss does not fit", "takes D first"],
    ),
    "a criterion for a loss": (
        lambda u, w, real, fake: u(real, fake, d_loss=nn.BCEWithLogitsLoss()),
        ["d_loss does not fit", "BCEWithLogitsLoss is of outputs and labels", "takes D first"],
    ),
    "steps without its name": (
        lambda u, w, real, fake: predict(u, real, fake, 20),
        ["d_loss does not fit", "Was steps=20 meant"],
    ),
    "a loss that does not reduce": (
        lambda u, w, real, fake: u(real, fake, g_loss=lambda D, real, fake: D(fake)),
        ["g_loss returned", "mean"],
    ),
    "a loss that returns nothing": (
        lambda u, w, real, fake: u(real, fake, d_loss=lambda D, r, f: None),
        ["NoneType", "Return"],
    ),
    "a loss of another network": (
        lambda u, w, real, fake: u(real, fake, d_loss=lambda D, r, f: w.generator(torch.zeros(1, 2).double()).sum()),
        ["d_loss", "Pass the module that the loss uses|depends on no parameter"],
    ),
    "inference_mode": (lambda u, w, real, fake: inferred(u, real, fake), ["inference_mode", "no_grad"]),
    "K as text": (lambda u, w, real, fake: u(real, fake, steps="5"), ["steps is '5'", "whole number"]),
    "real and fake swapped in resample": (
        lambda u, w, real, fake: u(real, fake, resample=lambda k: (w.batch()[1], w.batch()[0])),
        ["real has a graph", r"The order is \(real, fake\)"],
    ),
    "torch's clipping for grad_transform": (
        lambda u, w, real, fake: unrolled(w, grad_transform=lambda grads: sum(g.norm() for g in grads))(real, fake),
        ["grad_transform got", r"unroll_wrap.clip_grad_norm\(1.0\)"],
    ),
    "one batch for resample": (
        lambda u, w, real, fake: u(real, fake, resample=[(real, fake)]),
        ["ran dry", "Give one for each", "has to be made anew"],
    ),
    "tensors from resample": (
        lambda u, w, real, fake: u(real, fake, resample=lambda k: fake),
        ["gave Tensor", "tuple"],
    ),
}

EXAMINED = {
    "the value of the loss": (
        lambda f, u, w, real, fake: f(u(real, fake), real, fake),
        ["Pass the UnrolledGeneratorLoss"],
    ),
    "the loss forgotten": (lambda f, u, w, real, fake: f(real, fake), ["Pass the UnrolledGeneratorLoss"]),
    "D in its place": (lambda f, u, w, real, fake: f(w.discriminator, real, fake), ["Pass the UnrolledGeneratorLoss"]),
    "its class": (lambda f, u, w, real, fake: f(UnrolledGeneratorLoss, real, fake), ["Pass the UnrolledGeneratorLoss"]),
    "under no_grad": (lambda f, u, w, real, fake: without_grad(f, u, real, fake), ["no_grad", "Leave that context"]),
    "G for wrt": (lambda f, u, w, real, fake: f(u, real, fake, wrt=w.generator), ["wrt is", r"wrt=list\(G.parameters"]),
    "names for wrt": (
        lambda f, u, w, real, fake: f(u, real, fake, wrt=["weight"]),
        ["wrt is", r"wrt=list\(G.parameters"],
    ),
    "K as text": (lambda f, u, w, real, fake: f(u, real, fake, steps="5"), ["steps is '5'", "whole number"]),
    "a K below zero": (lambda f, u, w, real, fake: f(u, real, fake, steps=-1), ["steps is -1", "whole number"]),
    "fake forgotten": (lambda f, u, w, real, fake: f(u, fake), ["d_loss does not fit", r"unrolled\(real, fake\)"]),
    "D after the batch": (
        lambda f, u, w, real, fake: f(u, real, fake, d_loss=lambda real, fake, D: D(fake).mean()),
        ["d_loss calls a tensor as if it were D", "first argument"],
    ),
    "real and fake swapped": (lambda f, u, w, real, fake: f(u, fake, real), ["real has a graph", "The order is"]),
}

OTHERS = {
    "Truncate nothing": (lambda: Truncate(0), ["steps=0", ">= 1"]),
    "Truncate a share": (lambda: Truncate(0.5), ["steps=0.5", "whole number"]),
    "Truncate by name": (lambda: Truncate("all"), ["steps='all'", "whole number"]),
    "Truncate with a class": (lambda: Truncate(2, Recompute), ["Truncate.backward=<class", r"such as Recompute\(\)"]),
    "Truncate more than K": (
        lambda: unrolled(warm_world(), backward=Truncate(9))(*warm_world().batch()),
        ["at most 3"],
    ),
    "Recompute every zero": (lambda: Recompute(every=0), ["every is 0", ">= 1"]),
    "Recompute every half": (lambda: Recompute(every=0.5), ["every is 0.5", "whole number"]),
    "Recompute always": (lambda: Recompute(every=True), ["every is True", "whole number"]),
    "a negative shift": (lambda: FiniteDifference(eps=-1e-3), ["eps=-0.001", "positive number"]),
    "a shift by name": (lambda: FiniteDifference(eps="auto"), ["eps='auto'", "positive number"]),
    "register_rule swapped": (
        lambda: register_rule(SGD, torch.optim.SGD),
        ["optimizer is", "derives from torch.optim.Opt"],
    ),
    "an optimizer, not its class": (
        lambda: register_rule(torch.optim.SGD([torch.zeros(1)], lr=1.0), SGD),
        ["optimizer is SGD", "Pass a class"],
    ),
    "a rule, not its class": (lambda: register_rule(torch.optim.SGD, SGD.update), ["rule is", "Pass a class"]),
    "a rule that is no dataclass": (
        lambda: register_rule(torch.optim.SGD, type("Bare", (UpdateRule,), {})),
        ["rule is", "dataclass"],
    ),
    "half an objective": (lambda: Objective(minimax.d_loss), ["g_loss"]),
    "options of Store": (lambda: Store(every=2), ["every"]),
    "options of Compiled": (lambda: Compiled(mode="max-autotune"), ["mode"]),
}


def unrolled(world, **options):
    return UnrolledGeneratorLoss(world.discriminator, world.optimizer, *non_saturating, **{"steps": 3, **options})


def inferred(u, *batch):
    with torch.inference_mode():
        return u(*batch)


def without_grad(f, u, *batch):
    with torch.no_grad():
        return f(u, *batch)


def test_at_least_ten_for_each_call():
    assert min(map(len, (CONSTRUCTOR, CALL, EXAMINED, OTHERS))) >= 10


@pytest.mark.parametrize("mistake", CONSTRUCTOR)
def test_with_the_constructor(mistake):
    world = warm_world()
    act, words = CONSTRUCTOR[mistake]
    refused(world, lambda: act(world), *words)


@pytest.mark.parametrize("mistake", CALL)
def test_with_a_call(mistake):
    world = warm_world()
    act, words = CALL[mistake]
    u, (real, fake) = unrolled(world), world.batch()
    refused(world, lambda: act(u, world, real, fake), *words)
    assert torch.isfinite(u(real, fake))


@pytest.mark.parametrize("mistake", EXAMINED)
@pytest.mark.parametrize("function", [verify, diagnose, predict], ids=lambda f: f.__name__)
def test_with_what_examines_a_call(function, mistake):
    """`verify` may tell in its report what the others raise."""
    world = warm_world()
    act, words = EXAMINED[mistake]
    u, (real, fake) = unrolled(world), world.batch()

    def tried():
        found = act(function, u, world, real, fake)
        if function is verify and not found.passed:
            raise ValueError(str(found))

    refused(world, tried, *words)


@pytest.mark.parametrize("mistake", OTHERS)
def test_with_the_smaller_ones(mistake):
    act, words = OTHERS[mistake]
    refused(warm_world(), act, *words)


def test_no_steps_are_checked_too():
    """K=0 goes its own way, and a mistake there is told in the same words."""
    world = warm_world()
    u, (real, fake) = unrolled(world, steps=0), world.batch()
    refused(world, lambda: u(fake), "g_loss does not fit", r"unrolled\(real, fake\)")
    refused(world, lambda: u(fake, real), "real has a graph")


def test_what_looks_like_a_mistake_and_is_none():
    """A penalty's real that requires grad; a partial; a loss whose own TypeError has nothing to do with the call."""
    world = warm_world()
    u, (real, fake) = unrolled(world), world.batch()
    assert torch.isfinite(u(real.clone().requires_grad_(), fake))
    assert torch.isfinite(u(real, fake, d_loss=functools.partial(non_saturating.d_loss)))
    for given in ({"d_loss": raising}, {"steps": 0, "g_loss": raising}):
        with pytest.raises(TypeError) as caught:
            u(real, fake, **given)
        assert str(caught.value) == "my own"


def raising(D, real, fake):
    raise TypeError("my own")
