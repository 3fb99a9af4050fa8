"""steps, resample, average, stop_gradient and the transforms do what their documentation says."""

import numpy
import pytest
import reference
import torch
from checks import assert_exact, assert_value, call, expect, expected_of, gradient_of, oracle, unrolled_of, warm_world
from problems import softplus
from snapshot import changed, snapshot

from unroll_wrap import UnrolledGeneratorLoss, verify


@pytest.mark.parametrize("name", ["mlp", "batchnorm_two_batches"])
@pytest.mark.parametrize("steps", [1, 3])
def test_average_is_the_mean_over_the_steps(name, steps):
    """The mean of g_loss over theta^1..theta^K, value and gradient; for K > 1 not its value at theta^K."""
    world = warm_world(name)
    expected = expect(world, steps=steps, average=True)
    loss = call(world, unrolled_of(world, steps=steps, average=True))
    assert_exact(loss, world, expected)
    last = oracle(reference.value, world, steps=steps)
    assert (abs(last - expected.value) > 1e-3) == (steps > 1)


def test_average_of_no_steps_is_the_plain_loss():
    """steps=0 has nothing to average."""
    world = warm_world()
    loss = call(world, unrolled_of(world, steps=0, average=True))
    assert loss.item() == oracle(reference.value, world, steps=0).item()


@pytest.mark.parametrize("mode", ["argument", "closure", "rerun"])
@pytest.mark.parametrize("name", ["mlp", "batchnorm_one_batch", "dropout", "spectral_norm_new", "wgan_gp", "tied"])
def test_stop_gradient_is_the_gradient_at_theta_k(name, mode):
    """The same value; the gradient of g_loss at the real theta^K held fixed; not the total derivative."""
    world = warm_world(name)
    value, first = oracle(reference.value, world, steps=3), oracle(reference.first_term, world, steps=3)
    state = torch.get_rng_state()
    loss = call(world, unrolled_of(world, steps=3, stop_gradient=True), mode)
    assert_value(loss, value)
    gradient = gradient_of(loss, world)
    assert reference.gap(gradient, first) < 1e-11
    torch.set_rng_state(state)
    full = gradient_of(call(world, unrolled_of(world, steps=3), mode), world)
    assert reference.gap(gradient, full) > 1e-2


@pytest.mark.parametrize("way", ["callable", "list", "tuple", "iterator", "lists"])
def test_resampled_batches_with_fresh_noise(way):
    """A new (real, G(z)) per inner step, the call's own batch in g_loss; the gradient goes through every one."""
    world = warm_world()
    fixed = oracle(reference.value, world, steps=3)
    world.resample = True
    expected = expect(world, steps=3)
    assert abs(expected.value - fixed) > 1e-3
    resample = {
        "callable": lambda k: world.draw(k),
        "list": world.batches(3),
        "tuple": tuple(world.batches(3)),
        "iterator": (world.draw(k) for k in range(3)),
        "lists": lambda k: list(world.draw(k)),
    }[way]
    unrolled = UnrolledGeneratorLoss(world.discriminator, world.optimizer, world.d_loss, world.g_loss, steps=3)
    assert_exact(unrolled(*world.batch(), resample=resample), world, expected)
    # The control: inner fakes cut off from the generator, the first-order habit, give another gradient.
    full = gradient_of(unrolled(*world.batch(), resample=world.draw), world)
    with pytest.warns(UserWarning, match="second term"):
        cut = unrolled(*world.batch(), resample=lambda k: [x.detach() for x in world.draw(k)])
    assert_value(cut, expected.value)
    assert reference.gap(gradient_of(cut, world), full) > 1e-2


def test_resample_is_asked_once_per_step_in_order():
    """Called with 0, 1, ..., K-1; a per-call resample overrides the constructor's; steps=0 asks for nothing."""
    world, asked = warm_world(), []

    def resample(k):
        asked.append(k)
        return world.draw(k)

    unrolled = unrolled_of(world, steps=3, resample=resample)
    call(world, unrolled)
    assert asked == [0, 1, 2]
    call(world, unrolled, steps=0)
    assert asked == [0, 1, 2]
    other = call(world, unrolled, resample=[world.draw(9)] * 3)
    assert asked == [0, 1, 2]
    assert abs(other - call(world, unrolled)) > 1e-4


def test_an_iterator_is_consumed_by_the_steps_alone():
    """A loader shared with the loop loses exactly K batches a call."""
    world = warm_world()
    loader = iter(range(100))
    taken = []

    def batches():
        for i in loader:
            taken.append(i)
            yield world.draw(i % 20)

    unrolled = unrolled_of(world, steps=3)
    source = batches()
    call(world, unrolled, resample=source)
    call(world, unrolled, resample=source)
    assert taken == list(range(6))


def test_steps_may_be_a_schedule():
    """A callable is asked once per call, and its answer is that call's K."""
    world, schedule = warm_world(), iter([0, 1, 3, 0])
    unrolled = unrolled_of(world, steps=lambda: next(schedule))
    for steps in (0, 1, 3, 0):
        assert_value(call(world, unrolled), oracle(reference.value, world, steps=steps))
    with pytest.raises(StopIteration):
        next(schedule)


def test_steps_per_call():
    """A call's own steps, int or callable, override the constructor's, once."""
    world = warm_world()
    unrolled = unrolled_of(world, steps=1)
    three, one = oracle(reference.value, world, steps=3), oracle(reference.value, world, steps=1)
    assert_value(call(world, unrolled, steps=3), three)
    assert_value(call(world, unrolled, steps=lambda: 3), three)
    assert_value(call(world, unrolled), one)
    assert abs(three - one) > 1e-3


def test_five_steps_are_the_default():
    """K=5, as in the paper."""
    world = warm_world()
    unrolled = UnrolledGeneratorLoss(world.discriminator, world.optimizer, world.d_loss, world.g_loss)
    assert_value(call(world, unrolled), oracle(reference.value, world, steps=5))


def test_losses_per_call_override_the_constructors():
    """d_loss and g_loss each on their own."""
    world = warm_world()
    unrolled = unrolled_of(world, steps=3)

    def d_loss(D, real, fake):
        return softplus(-2 * D(real)).mean() + softplus(D(fake)).mean()

    def g_loss(D, real, fake):
        return D(fake).mean() ** 2

    for changes in ({"d_loss": d_loss}, {"g_loss": g_loss}, {"d_loss": d_loss, "g_loss": g_loss}):
        other = warm_world()
        vars(other).update(changes)
        expected = expect(other, steps=3)
        assert abs(expected.value - expected_of("mlp", "adam", 3).value) > 1e-3
        assert_exact(call(world, unrolled, **changes), world, expected)


def test_keyword_arguments_reach_both_losses():
    """A fake passed by keyword is as exact as one passed by position."""
    world = warm_world()
    expected = expected_of("mlp", "adam", 3)
    real, fake = world.batch()
    assert_exact(unrolled_of(world, steps=3)(real, fake=fake), world, expected)
    assert_exact(unrolled_of(world, steps=3)(real=real, fake=fake), world, expected)


def clip(norm):
    """Global norm clipping without in-place arithmetic, as clip_grad_norm_ computes it."""

    def transform(grads):
        present = [g for g in grads if g is not None]
        total = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in present]))
        scale = (norm / (total + 1e-6)).clamp(max=1.0)
        return [None if g is None else g * scale for g in grads]

    return transform


@pytest.mark.parametrize(("optimizer", "norm"), [("sgd_momentum", 0.5), ("adam", 0.2)])
def test_grad_transform_clips_like_clip_grad_norm(optimizer, norm):
    """Differentiable clipping by global norm equals real steps with clip_grad_norm_ between backward and step."""
    world = warm_world("mlp", optimizer)
    expected = expect(world, steps=3, after_backward=lambda params: torch.nn.utils.clip_grad_norm_(params, norm))
    loss = call(world, unrolled_of(world, steps=3, grad_transform=clip(norm)))
    assert_exact(loss, world, expected)
    assert abs(oracle(reference.value, world, steps=3) - expected.value) > 1e-3


def test_param_transform_clips_weights():
    """A clamp after the step equals real steps with clamp_ on the parameters."""
    world = warm_world("mlp", "sgd")
    bound = 0.45

    def clamp(params):
        with torch.no_grad():
            for p in params:
                p.clamp_(-bound, bound)

    expected = expect(world, steps=3, after_step=clamp)
    loss = call(world, unrolled_of(world, steps=3, param_transform=lambda p: p.clamp(-bound, bound)))
    assert_exact(loss, world, expected)
    assert abs(oracle(reference.value, world, steps=3) - expected.value) > 1e-3


@pytest.mark.parametrize("given", [list, tuple, lambda Ds: {"a": Ds[0], "b": Ds[1]}])
def test_discriminators_come_in_lists_tuples_and_dicts(given):
    """The losses get the very object that was passed."""
    world = warm_world("two_discriminators_one_optimizer")
    expected = expected_of("two_discriminators_one_optimizer", "adam", 3)
    passed, seen = given(world.discriminator), []
    d_loss = world.d_loss
    unrolled = UnrolledGeneratorLoss(passed, world.optimizer, world.d_loss, world.g_loss, steps=3)
    loss = unrolled(*world.batch(), d_loss=lambda Ds, *batch: (seen.append(Ds), d_loss(Ds, *batch))[1])
    assert_exact(loss, world, expected)
    assert len(seen) == 3 and all(one is passed for one in seen)


def test_one_discriminator_is_passed_as_itself():
    """D is the user's own module, its type and identity unchanged inside the losses."""
    world = warm_world()
    D = world.discriminator

    def g_loss(given, real, fake):
        assert given is D and type(given) is torch.nn.Sequential
        return softplus(-D(fake)).mean()

    assert_exact(call(world, unrolled_of(world, steps=3), g_loss=g_loss), world, expected_of("mlp", "adam", 3))


@pytest.mark.parametrize("through", ["wrapper", "module"])
def test_data_parallel_on_the_cpu(through):
    """A DataParallel D: given wrapped, called wrapped or through .module."""
    world = warm_world("batchnorm_two_batches")
    expected = expected_of("batchnorm_two_batches", "adam", 3)
    wrapped = torch.nn.DataParallel(world.discriminator)
    unrolled = UnrolledGeneratorLoss(wrapped, world.optimizer, world.d_loss, world.g_loss, steps=3)
    if through == "module":
        d_loss, g_loss = world.d_loss, world.g_loss
        loss = unrolled(
            *world.batch(),
            d_loss=lambda D, *batch: d_loss(D.module, *batch),
            g_loss=lambda D, *batch: g_loss(D.module, *batch),
        )
    else:
        loss = call(world, unrolled)
    assert_exact(loss, world, expected)


def on_two_devices(D):
    """A DataParallel that believes it has two devices, and fails where it is asked to scatter to them."""
    wrapped = torch.nn.DataParallel(D)
    wrapped.device_ids, wrapped.dim, wrapped.src_device_obj = [0, 1], 0, torch.device("cpu")
    return wrapped


def test_data_parallel_on_two_devices():
    """Passes go to the module inside: the threads of the others know nothing of an unroll."""
    world, expected = warm_world(), expected_of("mlp", "adam", 3)
    wrapped = on_two_devices(world.discriminator)
    with pytest.raises((AssertionError, RuntimeError)):
        wrapped(torch.zeros(4, 2).double())
    unrolled = UnrolledGeneratorLoss(wrapped, world.optimizer, world.d_loss, world.g_loss, steps=3)
    assert_exact(call(world, unrolled), world, expected)
    assert "forward" not in vars(wrapped)


def test_statistics_of_each_devices_part():
    world = warm_world("batchnorm_two_batches")
    with pytest.raises(TypeError, match="DataParallel on 2 devices"):
        UnrolledGeneratorLoss(on_two_devices(world.discriminator), world.optimizer, world.d_loss, world.g_loss)


def test_the_wrapper_is_no_module():
    """Assigned to a module's attribute it adds nothing to parameters() or state_dict()."""
    world = warm_world()
    owner = torch.nn.Linear(1, 1)
    owner.unrolled = unrolled_of(world, steps=1)
    assert not isinstance(owner.unrolled, torch.nn.Module)
    assert list(owner.state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize("name", ["grad_transform", "param_transform"])
def test_transforms_may_write_to_what_they_are_given(name):
    """``clamp_`` is ``clamp``, and the user's own tensors stay as they are."""
    world, results = warm_world("mlp", "sgd"), []
    before = snapshot(world)
    for in_place in (False, True):

        def clamped(x, in_place=in_place):
            return x.clamp_(-0.1, 0.1) if in_place else x.clamp(-0.1, 0.1)

        transform = clamped if name == "param_transform" else lambda grads, clamped=clamped: list(map(clamped, grads))
        loss = call(world, unrolled_of(world, steps=3, **{name: transform}))
        results.append((loss.item(), gradient_of(loss, world)))
    assert results[0][0] == results[1][0] != call(world, unrolled_of(world, steps=3)).item()
    assert all(map(torch.equal, results[0][1], results[1][1]))
    assert changed(before, snapshot(world)) == []


@pytest.mark.parametrize("steps", [numpy.int64(3), torch.tensor(3)])
def test_any_whole_number_of_steps(steps):
    """As a config or an array has it."""
    world = warm_world()
    assert_exact(call(world, unrolled_of(world, steps=steps)), world, expected_of("mlp", "adam", 3))


class Empty(torch.nn.ModuleList):
    """A loss that is false: it holds no modules."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


def test_a_loss_that_is_false_is_a_loss():
    """An empty nn.ModuleList for one call is not taken for none."""
    world = warm_world()
    d_loss, g_loss = world.d_loss, world.g_loss
    world.d_loss, world.g_loss = lambda D, *batch: 0.5 * d_loss(D, *batch), lambda D, *batch: 3 * g_loss(D, *batch)
    unrolled = UnrolledGeneratorLoss(world.discriminator, world.optimizer, d_loss, g_loss, steps=3)
    given = {"d_loss": Empty(world.d_loss), "g_loss": Empty(world.g_loss)}
    assert not any(given.values())
    assert_exact(call(world, unrolled, **given), world, expect(world, steps=3))
    assert verify(unrolled, *world.batch(), **given).real_value == oracle(reference.value, world, steps=3).item()


def test_a_callable_that_makes_several_optimizers():
    """All of them move what they own."""
    world = warm_world()
    D, (real, fake) = world.discriminator, world.batch()

    def several(params):
        params = list(params)
        return [torch.optim.Adam(params[:2], lr=0.05), torch.optim.SGD(params[2:], lr=0.3)]

    fresh = UnrolledGeneratorLoss(D, several, world.d_loss, world.g_loss, steps=3)
    live = UnrolledGeneratorLoss(D, several(D.parameters()), world.d_loss, world.g_loss, steps=3)
    alone = UnrolledGeneratorLoss(D, lambda params: several(params)[0], world.d_loss, world.g_loss, steps=3)
    assert torch.equal(fresh(real, fake), live(real, fake))
    assert not torch.isclose(fresh(real, fake), alone(real, fake), rtol=1e-4)


def test_a_loss_shows_the_options_that_are_set():
    """And no others."""
    world = warm_world()
    plain = repr(unrolled_of(world, steps=3))
    assert plain == "UnrolledGeneratorLoss(an instance of Sequential, an instance of Adam, steps=3, backward=Store())"
    shown = repr(unrolled_of(world, steps=3, stop_gradient=True, average=True))
    assert shown == plain[:-1] + ", stop_gradient=True, average=True)"
