"""Nothing of the user's changes: not after a call, not after a backward, not when anything raises."""

import copy

import pytest
import torch
from checks import assert_exact, call, expected_of, unrolled_of, warm_world
from problems import PROBLEMS
from reference import discriminators
from snapshot import changed, snapshot

from unroll_wrap import UnrolledGeneratorLoss, is_unrolling, minimax, verify

WITH_STATE = [
    "batchnorm_two_batches",
    "dropout",
    "lstm",
    "tied",
    "unused_head",
    "spectral_norm_legacy",
    "spectral_norm_new",
    "weight_norm_legacy",
    "weight_norm_new",
    "frozen_at_call",
    "plain_buffer",
    "two_discriminators_two_optimizers",
    "dict_of_discriminators",
]


def ready(name, **options):
    """A world with mixed train flags and some gradients, its wrapper, and the record of both."""
    world = warm_world(name)
    unrolled = unrolled_of(world, **options)
    for D in discriminators(world.discriminator):
        first = list(D.modules())[-1]
        first.eval()
    next(world.generator.parameters()).grad = torch.ones_like(next(world.generator.parameters()))
    return world, unrolled, snapshot(world)


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("name", list(PROBLEMS))
def test_a_call_touches_nothing(name, steps):
    """Values, identities, versions, flags, buffers, gradients and optimizer entries are those from before."""
    world, unrolled, before = ready(name, steps=steps)
    loss = call(world, unrolled)
    assert changed(before, snapshot(world)) == []
    if steps:
        # The plain loss leaves gradients on D in every user's loop; the unrolled D is not theirs.
        torch.autograd.grad(loss, world.inputs)
        assert changed(before, snapshot(world)) == []
    assert not is_unrolling()


@pytest.mark.parametrize("name", WITH_STATE)
def test_backward_reaches_the_generator_alone(name):
    """After loss.backward() only the generator's gradients have changed, D's are neither set nor added to."""
    world, unrolled, before = ready(name, steps=2)
    call(world, unrolled).backward()
    after = snapshot(world)
    assert changed(before, after) != []
    assert {key.split(".")[0] for key in changed(before, after)} == {"generator"}
    assert all(p.grad is not None for p in world.generator.parameters())


@pytest.mark.parametrize("name", [name for name in PROBLEMS if name != "frozen_at_call"])
def test_training_goes_on_as_if_nothing_had_been(name):
    """Real D steps after a call, and D's output, are bit for bit those without the call."""
    outcomes = []
    for called in (False, True):
        world = warm_world(name)
        unrolled, state = unrolled_of(world, steps=2), torch.get_rng_state()
        if called:
            call(world, unrolled).backward()
        torch.set_rng_state(state)
        world.warm(3)
        outcomes.append(world.g_loss(world.discriminator, *world.batch(), **world.kwargs).item())
    assert outcomes[0] == outcomes[1]


class Stopped(Exception):
    """Raised in the middle."""


def raise_at(count, function, error):
    """`function`, which raises instead of running for the count-th time (from 0)."""
    calls = iter(range(10**6))

    def wrapped(*args, **kwargs):
        if next(calls) == count:
            raise error
        return function(*args, **kwargs)

    return wrapped


def d_loss_at(count):
    def options(world, error):
        return {"d_loss": raise_at(count, world.d_loss, error)}

    return options


def late_in_d_loss(world, error):
    """After the loss has run D, so that hooks and buffers have done their work."""

    def d_loss(*args, **kwargs):
        world.d_loss(*args, **kwargs)
        raise error

    return {"d_loss": d_loss}


def in_g_loss(world, error):
    return {"g_loss": raise_at(0, world.g_loss, error)}


def in_resample(world, error):
    return {"resample": raise_at(1, lambda k: world.draw(k), error)}


PLACES = {
    "d_loss_first": d_loss_at(0),
    "d_loss_third": d_loss_at(2),
    "d_loss_late": late_in_d_loss,
    "g_loss": in_g_loss,
    "resample": in_resample,
}


ERRORS = [Stopped("here"), KeyboardInterrupt()]
# Every problem in every place, with every error in turn: each problem and each place sees both.
RAISING = [
    pytest.param(name, place, ERRORS[(i + j) % 2], id=f"{name}-{place}-{type(ERRORS[(i + j) % 2]).__name__}")
    for i, name in enumerate(WITH_STATE)
    for j, place in enumerate(PLACES)
]


@pytest.mark.parametrize(("name", "place", "error"), RAISING)
def test_whatever_raises_everything_is_put_back(name, place, error):
    """The user's own exception comes out, nothing has changed, and the next call is right."""
    world, unrolled, before = ready(name, steps=3)
    with pytest.raises(type(error)) as caught:
        call(world, unrolled, **PLACES[place](world, error))
    assert caught.value is error
    assert changed(before, snapshot(world)) == []
    assert not is_unrolling()


@pytest.mark.parametrize("transform", ["grad_transform", "param_transform"])
def test_a_transform_that_raises(transform):
    """The same for the two transforms."""
    error = Stopped("here")
    world, unrolled, before = ready("batchnorm_two_batches", steps=3, **{transform: raise_at(1, lambda x: x, error)})
    with pytest.raises(Stopped) as caught:
        call(world, unrolled)
    assert caught.value is error
    assert changed(before, snapshot(world)) == []
    assert not is_unrolling()


@pytest.mark.parametrize("place", list(PLACES))
@pytest.mark.parametrize("name", ["mlp", "spectral_norm_legacy"])
def test_the_call_after_a_failed_one_is_exact(name, place):
    """A failure leaves nothing behind in the wrapper either."""
    expected, world = expected_of(name, "adam", 3), warm_world(name)
    unrolled, state = unrolled_of(world, steps=3), torch.get_rng_state()
    with pytest.raises(Stopped):
        call(world, unrolled, **PLACES[place](world, Stopped()))
    torch.set_rng_state(state)
    assert_exact(call(world, unrolled), world, expected)


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_loss_may_call_zero_grad(to_none, frozen):
    """D's gradients, accumulated over several batches say, are there after the call, and after verify."""
    world = warm_world()
    assert all(p.grad is not None for p in world.discriminator.parameters())
    world.discriminator.requires_grad_(not frozen)
    before, d_loss = snapshot(world), world.d_loss

    def clearing(D, real, fake):
        world.optimizer.zero_grad(to_none)
        D.zero_grad(to_none)
        return d_loss(D, real, fake)

    unrolled = unrolled_of(world, steps=3)
    assert_exact(call(world, unrolled, d_loss=clearing), world, expected_of("mlp", "adam", 3))
    assert changed(before, snapshot(world)) == []
    assert verify(unrolled, *world.batch(), d_loss=clearing).passed
    assert changed(before, snapshot(world)) == []


def test_a_loss_may_toggle_flags_and_run_hooks():
    """toggle_grad(D) inside a loss does not raise, changes no result, and the user's flags stay."""
    expected, world = expected_of("mlp", "adam", 3), warm_world()
    world.discriminator.requires_grad_(False)
    world.discriminator[0].bias.requires_grad_(True)
    seen = []
    world.discriminator[0].register_forward_hook(lambda module, args, out: seen.append(is_unrolling()))
    d_loss = world.d_loss

    def toggling(D, real, fake):
        D.requires_grad_(True)
        return d_loss(D, real, fake)

    world.discriminator.requires_grad_(True)
    unrolled = unrolled_of(world, steps=3, resample=None)
    world.discriminator.requires_grad_(False)
    before = snapshot(world)
    loss = unrolled(*world.batch(), d_loss=toggling)
    assert changed(before, snapshot(world)) == []
    assert len(seen) == 7 and all(seen[:6])
    assert_exact(loss, world, expected)


def set_value(world):
    world.discriminator[0].weight.data.view(-1)[0] += 1e-16


def replace_parameter(world):
    layer = world.discriminator[0]
    layer.weight = torch.nn.Parameter(layer.weight.detach().clone())


def bump_version(world):
    with torch.no_grad():
        world.discriminator[0].weight.add_(0)


def replace_data(world):
    world.discriminator[1].running_mean = world.discriminator[1].running_mean.clone()


def move_statistics(world):
    world.discriminator(world.batch()[0])


def flip_flag(world):
    world.discriminator[0].weight.requires_grad_(False)


def train_flag(world):
    world.discriminator[1].eval()


def drop_grad(world):
    world.discriminator[0].weight.grad = None


def copy_grad(world):
    world.discriminator[0].weight.grad = world.discriminator[0].weight.grad.clone()


def add_grad(world):
    world.discriminator[0].weight.grad += 1


def read_state(world):
    world.optimizer.state[torch.zeros(1)]  # a defaultdict: looking makes an entry


def state_value(world):
    world.optimizer.state[world.discriminator[0].weight]["step"] += 1


def state_identity(world):
    entry = world.optimizer.state[world.discriminator[0].weight]
    entry["exp_avg"] = entry["exp_avg"].clone()


def hyperparameter(world):
    world.optimizer.param_groups[0]["lr"] *= 2


def replace_group(world):
    world.optimizer.param_groups[0] = dict(world.optimizer.param_groups[0])


def add_hook(world):
    world.discriminator[0].register_forward_hook(lambda *_: None)


def stray_attribute(world):
    world.discriminator[0].left_behind = torch.zeros(1)


def change_class(world):
    world.discriminator[0].__class__ = type("Other", (torch.nn.Conv2d,), {})


CHANGES = [
    set_value, replace_parameter, bump_version, replace_data, move_statistics, flip_flag, train_flag, drop_grad,
    copy_grad, add_grad, read_state, state_value, state_identity, hyperparameter, replace_group, add_hook,
    stray_attribute, change_class,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_the_record_sees(change):
    """The control: each thing that must not happen is noticed, and nothing else is."""
    world = warm_world("batchnorm_two_batches")
    before = snapshot(world)
    assert changed(before, snapshot(world)) == []
    world.discriminator[0].weight.data.view(-1)[0] = 1e-16
    before = snapshot(world)
    change(world)
    assert changed(before, snapshot(world)) != []


def test_the_record_sees_what_legacy_hooks_leave():
    """The control for the plain `weight` of weight_norm: another forward, or the same numbers in a new tensor."""
    world = warm_world("weight_norm_legacy")
    before = snapshot(world)
    world.discriminator(world.batch()[0])
    assert changed(before, snapshot(world)) == ["0.0.weight", "0.2.weight"]
    before = snapshot(world)
    world.discriminator[0].weight = world.discriminator[0].weight.detach()
    assert changed(before, snapshot(world)) == ["0.0.weight"]


def test_the_record_sees_flat_weights():
    """The control for LSTM._flat_weights."""
    world = warm_world("lstm")
    before = snapshot(world)
    rnn = world.discriminator.rnn
    rnn._flat_weights[0] = copy.deepcopy(rnn._flat_weights[0])
    assert changed(before, snapshot(world)) == ["0.rnn._flat_weights"]


class Remembering(torch.nn.Module):
    """Keeps the features of its passes, as some do for a matching loss, in a list that is empty at first."""

    def __init__(self):
        super().__init__()
        self.layer, self.features = torch.nn.Linear(2, 1), []

    def forward(self, x):
        self.features.append(self.layer(x))
        return self.features[-1]


def test_a_list_that_a_forward_pass_appends_to():
    D = Remembering()
    unrolled = UnrolledGeneratorLoss(D, torch.optim.SGD(D.parameters(), 0.1), *minimax, steps=2)
    kept = D.features
    for before in (0, 1):
        unrolled(torch.randn(4, 2), torch.randn(4, 2, requires_grad=True))
        assert D.features is kept and len(kept) == before
        D(torch.randn(4, 2))
