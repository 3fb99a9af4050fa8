"""What a training loop does to its optimizer between two calls, and how it may hand it over."""

import copy
import itertools
import pickle
import re

import pytest
import torch
from checks import assert_exact, call, expect, expected_of, unrolled_of, warm_world
from problems import PROBLEMS
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau
from torch_table import wrapped

from unroll_wrap import UnrolledGeneratorLoss, non_saturating

STEPS = 2


def adam(params):
    return Adam(params, lr=0.02, betas=(0.5, 0.9))


def sgd(params):
    return SGD(params, lr=0.1, momentum=0.8)


def follow(world, unrolled, change, gap=1e-4):
    """Exact before and after a change, and the change shows; the same wrapper throughout."""
    before = call(world, unrolled).item()
    change()
    loss = call(world, unrolled)
    assert_exact(loss, world, expect(world, steps=STEPS), gap)
    assert abs(loss.item() - before) > 1e-7 * abs(before)


SCHEDULES = {
    "lambda": lambda o: LambdaLR(o, lambda epoch: 0.5**epoch),
    "one cycle": lambda o: OneCycleLR(o, max_lr=0.1, total_steps=8, base_momentum=0.5, max_momentum=0.95),
    "plateau": lambda o: ReduceLROnPlateau(o, patience=0, factor=0.2),
}


@pytest.mark.parametrize("factory", [adam, sgd])
@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_a_schedule_is_followed(schedule, factory):
    """The learning rate, and with OneCycleLR the momentum or beta1, at every stage of the training."""
    world = PROBLEMS["mlp"].build(factory)
    scheduler = SCHEDULES[schedule](world.optimizer)
    unrolled = wrapped(world, steps=STEPS)
    world.warm(3)
    seen = []

    def advance():
        world.warm(1)
        scheduler.step(1.0) if schedule == "plateau" else scheduler.step()
        group = world.optimizer.param_groups[0]
        seen.append((group["lr"], group["betas"][0] if "betas" in group else group["momentum"]))

    for _ in range(3):
        follow(world, unrolled, advance)
    assert len({lr for lr, _ in seen}) > 1
    assert (len({momentum for _, momentum in seen}) > 1) == (schedule == "one cycle")


def test_a_checkpoint_loaded_in_mid_training():
    """load_state_dict replaces every state tensor and every option."""
    world, other = PROBLEMS["mlp"].build(adam).warm(), PROBLEMS["mlp"].build(adam)
    other.optimizer.param_groups[0].update(lr=0.05, betas=(0.2, 0.8), weight_decay=0.1)
    other.warm(7)
    unrolled = wrapped(world, steps=STEPS)
    follow(world, unrolled, lambda: world.optimizer.load_state_dict(other.optimizer.state_dict()))
    assert world.optimizer.param_groups[0]["lr"] == 0.05


def test_a_group_added_later():
    """Its parameters stayed where they were before, and move after."""
    world = warm_world()
    D = world.discriminator
    world.optimizer = Adam(D[0].parameters(), lr=0.02, betas=(0.5, 0.9))
    unrolled = wrapped(world.warm(), steps=STEPS)
    follow(world, unrolled, lambda: world.optimizer.add_param_group({"params": D[2].parameters(), "lr": 0.1}))
    # The new group has no state yet, and its first steps are signs; then it has.
    follow(world, unrolled, lambda: world.warm(3))


def test_an_optimizer_replaced_in_the_users_wrapper():
    """What `.optimizer` is at the call."""
    world = warm_world()
    holder = Plain(world.optimizer)
    unrolled = unrolled_of(world, steps=STEPS)
    unrolled.optimizer = holder

    def replace():
        world.optimizer = holder.optimizer = SGD(world.discriminator.parameters(), lr=0.3, momentum=0.5)
        world.warm(2)

    follow(world, unrolled, replace)


@pytest.mark.parametrize(
    "factories", list(itertools.product([adam, sgd], repeat=2)), ids=lambda pair: "-".join(f.__name__ for f in pair)
)
def test_a_list_of_optimizers_over_two_discriminators(factories):
    """One for each, of the same class or of another, and each with its own schedule."""
    world = PROBLEMS["two_discriminators_two_optimizers"].build(adam)
    world.optimizer = [make(D.parameters()) for make, D in zip(factories, world.discriminator, strict=True)]
    schedulers = [
        LambdaLR(o, lambda epoch, base=base: base**epoch) for o, base in zip(world.optimizer, (0.5, 0.8), strict=True)
    ]
    unrolled = wrapped(world, steps=STEPS)
    world.warm(5)

    def advance():
        world.warm(1)
        for one in schedulers:
            one.step()

    follow(world, unrolled, advance)


class Plain:
    """The shape of most wrappers."""

    def __init__(self, optimizer):
        self.optimizer = optimizer


class OptimizerShaped(torch.optim.Optimizer):
    """AcceleratedOptimizer is itself an Optimizer, and hands everything to the one inside."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def state(self):
        return self.optimizer.state

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    @property
    def defaults(self):
        return self.optimizer.defaults

    def step(self, closure=None):
        return self.optimizer.step(closure)


class LightningShaped:
    """LightningOptimizer takes over the attributes of the optimizer inside."""

    def __init__(self, optimizer):
        self.__dict__ = {k: v for k, v in optimizer.__dict__.items() if k != "step"}
        self.__class__ = type(f"Lightning{type(optimizer).__name__}", (type(self), type(optimizer)), {})
        self._optimizer = optimizer

    @property
    def optimizer(self):
        return self._optimizer

    def step(self, closure=None, **kwargs):
        return self._optimizer.step(closure)


def of_module(cls, module):
    return type(cls.__name__, (cls,), {"__module__": module})


def lightning_shaped(module):
    def wrap(optimizer):
        wrapper = LightningShaped(optimizer)
        type(wrapper).__module__ = module
        return wrapper

    return wrap


WRAPPERS = {
    "plain": Plain,
    "plain twice": lambda o: Plain(Plain(o)),
    "accelerate": of_module(OptimizerShaped, "accelerate.optimizer"),
    "lightning": lightning_shaped("lightning.pytorch.core.optimizer"),
    "pytorch_lightning": lightning_shaped("pytorch_lightning.core.optimizer"),
    "lightning_fabric": of_module(Plain, "lightning_fabric.wrappers"),
    "lightning.fabric": of_module(Plain, "lightning.fabric.wrappers"),
    "accelerate in a list": lambda o: [of_module(OptimizerShaped, "accelerate.optimizer")(o)],
    "plain around accelerate": lambda o: Plain(of_module(OptimizerShaped, "accelerate.optimizer")(o)),
}


@pytest.mark.parametrize("wrap", list(WRAPPERS.values()), ids=list(WRAPPERS))
def test_a_wrapper_is_the_optimizer_inside(wrap):
    """Exact, and read afresh through the wrapper."""
    world = warm_world()
    unrolled = wrapped(world, steps=STEPS)
    unrolled = type(unrolled)(world.discriminator, wrap(world.optimizer), world.d_loss, world.g_loss, steps=3)
    assert_exact(call(world, unrolled), world, expected_of("mlp", "adam", 3))
    before = call(world, unrolled).item()
    world.optimizer.param_groups[0]["lr"] = 0.05
    loss = call(world, unrolled)
    assert_exact(loss, world, expect(world, steps=3))
    assert loss.item() != before


BAD_STATE = {
    "shape": (lambda t: t.reshape(-1)[:1], [r"\(1,\)", r"\(5, 2\)"]),
    "dtype": (lambda t: t.float(), ["float32", "float64"]),
    "device": (lambda t: t.to("meta"), ["meta", "cpu"]),
    "missing": (None, ["None|missing|no "]),
    "text": (lambda t: "0.5", ["0.5|str"]),
}


STATEFUL = {
    "adam": (adam, "exp_avg"),
    "amsgrad": (lambda p: Adam(p, lr=0.02, amsgrad=True), "max_exp_avg_sq"),
    "sgd": (sgd, "momentum_buffer"),
    "rmsprop": (lambda p: torch.optim.RMSprop(p, lr=0.01), "square_avg"),
}


# SGD itself starts a momentum buffer that is not there.
@pytest.mark.parametrize(
    ("name", "kind"), [(n, k) for n in STATEFUL for k in BAD_STATE if (n, k) != ("sgd", "missing")]
)
def test_state_that_does_not_fit_is_an_error_before_anything_runs(name, kind):
    """The message names the optimizer, the entry, what it is and what it should be."""
    factory, key = STATEFUL[name]
    world = PROBLEMS["mlp"].build(factory).warm()
    unrolled = wrapped(world, steps=STEPS)
    state = world.optimizer.state[world.discriminator[0].weight]
    change, words = BAD_STATE[kind]
    if change is None:
        del state[key]
    else:
        state[key] = change(state[key])
    ran = []

    def d_loss(D, *batch):
        ran.append(1)
        return world.d_loss(D, *batch)

    with pytest.raises((TypeError, ValueError)) as caught:
        call(world, unrolled, d_loss=d_loss)
    text = str(caught.value)
    for word in [type(world.optimizer).__name__, key, *words]:
        assert re.search(word, text), f"{word!r} is not in: {text}"
    assert not ran


SWITCHED_OFF = {
    "amsgrad": lambda params: Adam(params, lr=0.02, betas=(0.5, 0.9), amsgrad=True),
    "centered": lambda params: torch.optim.RMSprop(params, lr=0.01, centered=True),
    "momentum": lambda params: torch.optim.RMSprop(params, lr=0.01, momentum=0.5),
}


LEFT_BEHIND = {"amsgrad": "max_exp_avg_sq", "centered": "grad_avg", "momentum": "momentum_buffer"}


@pytest.mark.parametrize("option", list(SWITCHED_OFF))
def test_an_option_switched_off_leaves_state_behind(option):
    """Torch goes by the option, and keeps the entry of the state that it no longer reads."""
    world = PROBLEMS["mlp"].build(SWITCHED_OFF[option]).warm()
    group = world.optimizer.param_groups[0]
    follow(world, wrapped(world, steps=STEPS), lambda: group.update({option: type(group[option])()}))
    assert all(LEFT_BEHIND[option] in state for state in world.optimizer.state.values())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda unrolled: pickle.loads(pickle.dumps(unrolled))])
def test_a_copy_of_the_loss_knows_what_is_frozen(copied):
    """An EMA of everything, a checkpoint of a trainer: what was frozen from the start stays where it is."""
    world = warm_world("frozen_from_the_start")
    unrolled = UnrolledGeneratorLoss(world.discriminator, world.optimizer, *non_saturating, steps=STEPS)
    value = call(world, unrolled).item()
    assert call(world, copied(unrolled)).item() == value
    for p in world.frozen:
        p.requires_grad_(True)
    assert call(world, unrolled).item() != value
