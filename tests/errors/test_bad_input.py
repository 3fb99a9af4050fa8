"""Bad input gets an error that names what was given, and leaves the user's objects as they were."""

import copy
import re
import sys

import pytest
import torch
from checks import assert_exact, assert_value, call, expect, oracle, unrolled_of, warm_world
from reference import value
from refusals import REFUSALS, refused
from snapshot import changed, snapshot

from unroll_wrap import (
    Compiled,
    FiniteDifference,
    Recompute,
    SecondTermMissing,
    Store,
    Truncate,
    UnrolledGeneratorLoss,
    verify,
)


def build(world, optimizer, **options):
    """Construct and call: a refusal may come at either."""
    options = {"steps": 2, **options}
    return lambda: call(
        world, UnrolledGeneratorLoss(world.discriminator, optimizer, world.d_loss, world.g_loss, **options)
    )


def test_the_good_call_beside_them():
    """The control of this file: the same calls with good input are answered."""
    world = warm_world()
    assert_value(build(world, world.optimizer)(), oracle(value, world, steps=2))


@pytest.mark.parametrize("steps", [1, 3])
def test_a_fake_without_gradient(steps):
    """A fake that arrives detached would train nothing."""
    world = warm_world()
    real, fake = world.batch()
    unrolled = unrolled_of(world, steps=steps)
    refused(world, lambda: unrolled(real, fake.detach()), "grad", "detach|no_grad")


def test_closures_over_a_fake_without_gradient():
    """The same when the losses capture it."""
    world = warm_world()
    real, fake = (x.detach() for x in world.batch())
    unrolled, d_loss, g_loss = unrolled_of(world, steps=2), world.d_loss, world.g_loss
    refused(
        world,
        lambda: unrolled(d_loss=lambda D: d_loss(D, real, fake), g_loss=lambda D: g_loss(D, real, fake)),
        "grad",
    )


def test_an_optimizer_of_something_else():
    """It owns nothing of D: the unroll would do nothing."""
    world = warm_world()
    other = torch.optim.Adam(world.generator.parameters(), lr=0.01)
    refused(world, build(world, other), "own|param", "discriminator")


def test_an_optimizer_that_owns_more():
    """It owns parameters outside D, which an unroll would leave behind."""
    world = warm_world()
    both = torch.optim.Adam([*world.discriminator.parameters(), *world.generator.parameters()], lr=0.01)
    refused(world, build(world, both), "own|param", "discriminator")


def test_two_optimizers_that_own_the_same_parameter():
    """Real loops step both, one after the other: that, exactly, or a refusal."""
    world = warm_world()
    world.optimizer = [world.optimizer, torch.optim.SGD(world.discriminator[0].parameters(), lr=0.3)]
    expected = expect(world, steps=3)
    try:
        loss = build(world, world.optimizer, steps=3)()
    except REFUSALS as error:
        assert re.search("two|twice|both|more than one|already", str(error))
    else:
        assert_exact(loss, world, expected)


@pytest.mark.parametrize("which", ["d_loss", "g_loss"])
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda D, real, fake: D(fake), [r"6, ?1", "scalar|single"]),
        (lambda D, real, fake: D(fake).mean().item(), ["float"]),
        (lambda D, real, fake: None, ["None"]),
        (lambda D, real, fake: D(fake).mean() * float("nan"), ["nan|finite"]),
        (lambda D, real, fake: D(fake).mean() + float("inf"), ["inf|finite"]),
    ],
    ids=["shape", "float", "none", "nan", "inf"],
)
def test_a_loss_that_is_no_finite_scalar(which, wrong, words):
    """The message says which loss it was and what it gave."""
    world = warm_world()
    unrolled = unrolled_of(world, steps=3)
    refused(world, lambda: unrolled(*world.batch(), **{which: wrong}), which, *words)


def test_a_loss_that_turns_nan_in_the_third_step():
    """A finite start does not hide it."""
    world = warm_world()
    count, d_loss = iter(range(10)), world.d_loss

    def turning(D, *batch):
        return d_loss(D, *batch) * (float("nan") if next(count) == 2 else 1.0)

    unrolled = unrolled_of(world, steps=4)
    refused(world, lambda: unrolled(*world.batch(), d_loss=turning), "d_loss", "nan|finite")


def test_a_d_loss_that_does_not_depend_on_d():
    """A plain loop raises there too."""
    world = warm_world()
    unrolled = unrolled_of(world, steps=2)
    refused(world, lambda: unrolled(*world.batch(), d_loss=lambda D, r, f: (f - r).pow(2).mean()), "d_loss")


def an_ensemble(D, real, fake):
    return sum(torch.nn.functional.softplus(-old(fake)).mean() for old in OLD)


OLD = [copy.deepcopy(warm_world().discriminator) for _ in range(2)]
WITHOUT_D = {
    "an ensemble of others": an_ensemble,
    "what D returns, detached": lambda D, real, fake: (D(fake).detach() * fake).mean(),
    "no network at all": lambda D, real, fake: (fake - real).pow(2).mean(),
}


@pytest.mark.parametrize("backward", [Store(), Recompute(), FiniteDifference(), Truncate(1)], ids=repr)
@pytest.mark.parametrize("g_loss", WITHOUT_D.values(), ids=WITHOUT_D)
def test_a_g_loss_that_does_not_depend_on_d(g_loss, backward):
    """It is g_loss that is named, not d_loss, by a call and by verify; and d_loss where g_loss is as it should be."""
    world = warm_world()
    unrolled = unrolled_of(world, steps=3, backward=backward)
    with pytest.warns(SecondTermMissing, match="^g_loss does not depend on the discriminator") as caught:
        unrolled(*world.batch(), g_loss=g_loss)
    assert len(caught) == 1 and caught[0].filename == __file__
    report = verify(unrolled, *world.batch(), g_loss=g_loss)
    assert report.problems[0].startswith("g_loss does not depend on the discriminator")
    with pytest.warns(SecondTermMissing, match="^d_loss does not depend on the generator"):
        unrolled(*world.batch(), d_loss=lambda D, real, fake: world.d_loss(D, real, fake.detach()))
    # The control: with both as they should be, nothing is said, since a warning is an error here.
    unrolled(*world.batch())
    unrolled_of(world, steps=3, stop_gradient=True)(*world.batch(), g_loss=g_loss)


@pytest.mark.parametrize("where", ["constructor", "call", "schedule"])
@pytest.mark.parametrize("steps", [-1, 2.5, True, "3", float("nan")])
def test_steps_that_are_no_count(where, steps):
    """Negative, fractional, boolean or text: the message quotes it."""
    world = warm_world()
    good = unrolled_of(world, steps=1)
    act = {
        "constructor": build(world, world.optimizer, steps=steps),
        "call": lambda: call(world, good, steps=steps),
        "schedule": build(world, world.optimizer, steps=lambda: steps),
    }[where]
    refused(world, act, "steps", re.escape(str(steps)))


@pytest.mark.parametrize("make", [lambda world: [world.draw(0)], lambda world: iter([world.draw(0)])])
def test_a_resample_that_runs_dry(make):
    """One batch for three steps: both numbers are in the message."""
    world = warm_world()
    unrolled = unrolled_of(world, steps=3)
    refused(world, lambda: call(world, unrolled, resample=make(world)), "resample", r"\b1\b", r"\b3\b")


def test_an_iterator_dry_at_the_second_call():
    """A list can be read again, an iterator cannot."""
    world = warm_world()
    unrolled = unrolled_of(world, steps=2, resample=(world.draw(k) for k in range(3)))
    call(world, unrolled)
    refused(world, lambda: call(world, unrolled), "resample", r"\b1\b", r"\b2\b")


@pytest.mark.parametrize("fill", ["copy", "data", "numpy"])
@pytest.mark.parametrize("backward", [Store(), Recompute(), Compiled()], ids=str)
def test_a_resample_that_fills_the_same_tensors_again(fill, backward):
    """The derivative of an earlier step would be taken at a later batch; the control gives a clone."""
    world = warm_world()
    real, fake = world.batch()
    buffer = real.clone()

    def refilled(k):
        new = real + k
        if fill == "numpy":
            buffer.numpy()[:] = new.numpy()
        else:
            (buffer.data if fill == "data" else buffer).copy_(new)
        return buffer, fake

    unrolled = unrolled_of(world, steps=3, backward=backward)
    refused(world, lambda: unrolled(real, fake, resample=refilled), "resample for inner step 1 writes to", "clone")
    assert unrolled(real, fake, resample=lambda k: (refilled(k)[0].clone(), fake)).isfinite()


def test_a_resample_that_is_no_batch_source():
    """A number is neither callable nor iterable."""
    world = warm_world()
    refused(world, build(world, world.optimizer, resample=3), "resample", "3|int")


@pytest.mark.parametrize("which", ["real", "fake"])
def test_another_device(which):
    """Both devices are named."""
    world = warm_world()
    real, fake = world.batch()
    batch = (real.to("meta"), fake) if which == "real" else (real, fake.to("meta"))
    unrolled = unrolled_of(world, steps=2)
    refused(world, lambda: unrolled(*batch), "meta", "cpu")


@pytest.mark.parametrize("which", ["real", "fake"])
def test_another_dtype(which):
    """Both dtypes are named."""
    world = warm_world()
    real, fake = world.batch()
    batch = (real.float(), fake) if which == "real" else (real, fake.float())
    unrolled = unrolled_of(world, steps=2)
    refused(world, lambda: unrolled(*batch), "float32", "float64")


def test_images_as_bytes():
    """Each tensor of the batch is named, in order."""
    world = warm_world()
    real, fake = world.batch()
    unrolled = unrolled_of(world, steps=2)
    refused(world, lambda: unrolled(real.to(torch.uint8), fake), r"uint8\), cpu \(torch.float64\), in this order")


@pytest.mark.parametrize("optimizer", [torch.optim.LBFGS, torch.optim.SparseAdam])
def test_an_unsupported_optimizer(optimizer):
    """It is named, and so is a supported one, live or as a spec."""
    world = warm_world()
    bad = optimizer(world.discriminator.parameters(), lr=0.01)
    refused(world, build(world, bad), optimizer.__name__, r"\bAdam\b")
    refused(world, build(world, lambda params: optimizer(params, lr=0.01)), optimizer.__name__, r"\bAdam\b")


class Squashed(torch.optim.Adam):
    """Somebody's own optimizer: called Adam's child, and doing something else."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["lr"] * torch.tanh(p.grad))


def test_a_subclass_with_its_own_step_is_not_taken_for_its_parent():
    """Exact or refused by name, never its parent's step in silence."""
    world = warm_world()
    D = world.discriminator
    world.optimizer = Squashed(D.parameters(), lr=0.3)
    expected = expect(world, steps=3)
    as_adam = oracle(value, world, steps=3, optimizer=lambda params: torch.optim.Adam(params, lr=0.3))
    assert abs(as_adam - expected.value) > 1e-3
    try:
        loss = build(world, world.optimizer, steps=3)()
    except REFUSALS as error:
        assert "Squashed" in str(error)
    else:
        assert_exact(loss, world, expected)


def test_one_unsupported_optimizer_among_two():
    """In a list as well."""
    world = warm_world()
    D = world.discriminator
    mixed = [torch.optim.Adam(D[0].parameters()), torch.optim.LBFGS(D[2].parameters())]
    refused(world, build(world, mixed), "LBFGS")


@pytest.mark.parametrize("register", ["register_step_pre_hook", "register_step_post_hook"])
def test_an_optimizer_with_step_hooks(register):
    """A hook that reads numbers out of tensors could not be differentiated, so it is refused and not skipped."""
    world = warm_world()

    def hook(optimizer, args, kwargs):
        for p in optimizer.param_groups[0]["params"]:
            (p.grad if "pre" in register else p.data).mul_(1 + p.grad.norm().item())

    handle = getattr(world.optimizer, register)(hook)
    refused(world, build(world, world.optimizer), "Adam", r"\.item\(\)")
    handle.remove()
    build(world, world.optimizer)()


def test_an_optimizer_with_a_step_put_on_it():
    """It is traced or refused; a scheduler's or a compiler's wrapper adds nothing."""
    world = warm_world()
    optimizer = world.optimizer
    step = optimizer.step
    optimizer.step = lambda: [p.grad.mul_(p.grad.sum().item()) for p in world.discriminator.parameters()] and step()
    refused(world, build(world, optimizer), "Adam", r"\.item\(\)")
    for wrapped in (step, torch.compile(step, backend="eager")):
        optimizer.step = wrapped
        build(world, optimizer)()
    del optimizer.step
    torch.optim.lr_scheduler.ConstantLR(optimizer)
    assert "step" in vars(optimizer)
    build(world, optimizer)()


@pytest.mark.parametrize("optimizer", ["adam", None, 3])
def test_what_is_no_optimizer(optimizer):
    """A name, nothing, a number: quoted."""
    world = warm_world()
    refused(world, build(world, optimizer), "optimizer", re.escape(str(optimizer)))


@pytest.mark.parametrize("discriminator", [lambda x: x, 3, None, []])
def test_what_is_no_discriminator(discriminator):
    """Quoted by type or by value."""
    world = warm_world()

    def act():
        UnrolledGeneratorLoss(discriminator, world.optimizer, world.d_loss, world.g_loss, steps=1)(*world.batch())

    refused(world, act, "discriminator", "module")


def test_a_label_buffer_that_is_refilled():
    """A saved BCE target, changed in place before its gradient is taken: the cause is named, with what to do."""
    world, label = warm_world(), torch.zeros(6, 1, dtype=torch.float64)
    bce = torch.nn.functional.binary_cross_entropy_with_logits

    def d_loss(D, real, fake):
        return bce(D(fake), label.fill_(0.1)) + bce(D(real), label.fill_(0.9))

    unrolled = unrolled_of(world, steps=2)
    refused(world, lambda: unrolled(*world.batch(), d_loss=d_loss), "d_loss", "in place", "full_like")


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("script", [torch.jit.script, lambda D: torch.jit.trace(D, torch.zeros(6, 2).double())])
def test_a_scripted_discriminator(script):
    """Its parameters are outside Python; the message says what to pass instead."""
    world = warm_world()
    scripted = script(world.discriminator)
    optimizer = torch.optim.Adam(scripted.parameters(), lr=0.1)
    refused(world, lambda: UnrolledGeneratorLoss(scripted, optimizer, steps=1), "script", "Pass the module")


def test_a_spec_that_makes_no_optimizer():
    """What it returned is named."""
    world = warm_world()
    refused(world, build(world, lambda params: "nothing"), "nothing|str", "optimizer")


def test_wrong_arguments_of_a_loss_are_pythons_own_error():
    """A missing argument is a TypeError of the user's function, everything put back."""
    world = warm_world()
    unrolled = unrolled_of(world, steps=2)
    refused(world, lambda: unrolled(world.batch()[1]), "fake|argument")


@pytest.mark.parametrize("rest", ["kept", "freed"])
@pytest.mark.parametrize("which", ["d_loss", "g_loss"])
def test_a_loss_that_calls_backward(which, rest):
    """What it adds to .grad counts in a real step, and would be missing here; verify says so too."""
    world = warm_world()

    def stepping(D, real, fake):
        half, other = D(real).square().mean(), D(fake).square().mean()
        half.backward()
        return other if rest == "kept" else half + other

    losses = {"d_loss": world.d_loss, "g_loss": world.g_loss, which: stepping}
    refused(world, lambda: call(world, unrolled_of(world, steps=2), **losses), which, "backward", "sum of all terms")
    for p in world.discriminator.parameters():
        p.grad = None


def test_a_whole_training_step_for_a_loss():
    """Refused for its backward(), and D has not moved."""
    world = warm_world()

    def train(D, real, fake):
        world.optimizer.zero_grad()
        loss = world.d_loss(D, real, fake)
        loss.backward()
        world.optimizer.step()
        return loss.item()

    refused(world, lambda: unrolled_of(world, steps=2)(*world.batch(), d_loss=train), "A loss calls backward")


@pytest.mark.parametrize("other", ["parameter", "buffer"])
def test_two_tensors_in_the_same_memory(other):
    """A real step moves both."""
    world = warm_world()
    D = world.discriminator
    if other == "parameter":
        D.append(torch.nn.Linear(2, 5, dtype=torch.float64))
        D[-1].weight.data = D[0].weight.data
    else:
        D.register_buffer("shadow", D[0].weight.data)
    optimizer = torch.optim.SGD(D.parameters(), lr=0.1)
    refused(world, build(world, optimizer), "same memory", r"\(5, 2\)", "clone")


def test_sparse_gradients():
    """Torch's SGD takes them, a second derivative does not."""
    world = warm_world()
    embed = torch.nn.Embedding(6, 2, sparse=True, dtype=torch.float64)
    optimizer = torch.optim.SGD([*world.discriminator.parameters(), *embed.parameters()], lr=0.1)
    world.discriminator = [world.discriminator, embed]
    d_loss, numbers = world.d_loss, torch.arange(6)
    world.d_loss = lambda Ds, real, fake: d_loss(Ds[0], real + Ds[1](numbers), fake)
    world.g_loss = lambda Ds, real, fake: Ds[0](fake).mean()
    refused(world, build(world, optimizer), "sparse=True")


def test_a_discriminator_that_diverges_in_the_unroll():
    """It is finite at the call, so the message speaks of the steps, and lists their losses up to the first infinite."""
    world = warm_world()
    optimizer = torch.optim.SGD(world.discriminator.parameters(), lr=1e200)
    unrolled = UnrolledGeneratorLoss(
        world.discriminator, optimizer, lambda D, r, f: (D(f) - D(r)).square().mean(), world.g_loss, steps=9
    )
    with pytest.raises(ValueError, match=r"along the steps: 1\.\d+, inf\. Lower the discriminator's") as caught:
        unrolled(*world.batch())
    assert "given" not in str(caught.value)


def test_a_hook_after_accumulation():
    """An unroll fills no .grad, so it would never run."""
    world = warm_world()
    handle = world.discriminator[0].weight.register_post_accumulate_grad_hook(lambda p: None)
    refused(world, build(world, world.optimizer), "hook", r"\(5, 2\)", "grad_transform")
    handle.remove()
    build(world, world.optimizer)()


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda world, real, fake: (real[:0], fake), "batch"),
        (lambda world, real, fake: (real, fake * float("inf")), "batch"),
        (lambda world, real, fake: (world.discriminator[0].bias.data.fill_(float("nan")), (real, fake))[1], "discrim"),
    ],
    ids=["empty", "infinite", "D"],
)
def test_a_loss_that_is_not_finite_because_of_what_is_given(change, place):
    """Then D's learning rate is not to blame."""
    world = warm_world()
    batch = change(world, *world.batch())
    refused(world, lambda: unrolled_of(world, steps=2)(*batch), f"the {place}.*empty or not finite")


@pytest.mark.parametrize("wrong", [lambda given: None, lambda given: given[0], lambda given: 3.0])
@pytest.mark.parametrize("name", ["grad_transform", "param_transform"])
def test_a_transform_that_returns_something_else(name, wrong):
    """Often nothing, because it works in place."""
    world = warm_world()
    refused(world, build(world, world.optimizer, **{name: wrong}), name, "Return")


@pytest.mark.parametrize(
    ("name", "wrong", "told"),
    [
        ("grad_transform", lambda grad: grad * 0.5, "the list of all gradients"),
        ("param_transform", lambda params: [p.clamp(-1, 1) for p in params.items()], "one parameter"),
    ],
)
def test_a_transform_that_fails_says_what_it_is_called_with(name, wrong, told):
    """The error is the transform's own, with a note."""
    world = warm_world()
    before = snapshot(world)
    with pytest.raises((TypeError, AttributeError)) as caught:
        build(world, world.optimizer, **{name: wrong})()
    if sys.version_info >= (3, 11):
        assert [note for note in caught.value.__notes__ if name in note and told in note]
    assert changed(before, snapshot(world)) == []


@pytest.mark.parametrize("average", [2.0, None, "all"])
def test_an_average_set_after_construction(average):
    """As the constructor refuses it."""
    world = warm_world()
    unrolled = unrolled_of(world, steps=2)
    unrolled.average = average
    refused(world, lambda: unrolled(*world.batch()), "average is", "Extrapolate")


def test_a_warning_points_at_the_users_line():
    """Whatever torch puts around the call."""
    world = warm_world()
    unrolled, (real, fake) = unrolled_of(world, steps=2), world.batch()
    with pytest.warns(UserWarning, match="second term") as caught:
        unrolled(real, fake, d_loss=lambda D, real, fake: world.d_loss(D, real, fake.detach()))
    assert [one.filename for one in caught] == [__file__]


def test_a_discriminator_that_is_nan_whatever_the_backward():
    for backward in (Recompute(), Recompute(every=2), FiniteDifference(), Compiled()):
        world = warm_world()
        with torch.no_grad():
            world.discriminator[0].weight.fill_(float("nan"))
        unrolled = unrolled_of(world, steps=3, backward=backward)
        refused(world, lambda unrolled=unrolled, world=world: unrolled(*world.batch()), "nan", "discriminator")


def test_running_out_of_memory_stays_what_it_is():
    """Whoever catches that, to try a smaller batch, still does."""
    world = warm_world()

    def exhausted(D, real, fake):
        raise torch.OutOfMemoryError("CUDA out of memory")

    real, fake = world.batch()
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        unrolled_of(world, steps=2)(real.float(), fake, d_loss=exhausted)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes before 3.11")
def test_an_error_inside_a_loss_says_where_it_was():
    world, count = warm_world(), iter(range(9))

    def failing(D, real, fake):
        if next(count) == 2:
            raise KeyError("label")
        return world.d_loss(D, real, fake)

    with pytest.raises(KeyError) as caught:
        unrolled_of(world, steps=4)(*world.batch(), d_loss=failing)
    batch = "a Tensor of shape (6, 2), a Tensor of shape (6, 2)"
    assert caught.value.__notes__ == [f"That was d_loss at inner step 2, run by an unrolled loss on {batch}."]


def test_a_schedule_that_takes_an_argument():
    """As ``resample`` does."""
    world = warm_world()
    before = snapshot(world)
    with pytest.raises(TypeError, match="positional argument") as caught:
        unrolled_of(world, steps=lambda k: 2)(*world.batch())
    if sys.version_info >= (3, 11):
        assert "passed as steps, which is called without arguments" in caught.value.__notes__[0]
    assert changed(before, snapshot(world)) == []
