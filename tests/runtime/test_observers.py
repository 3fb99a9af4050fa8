"""Profilers, hooks on saved tensors and other tools that hold on to D's tensors: the call is the same."""

import contextlib
import gc

import pytest
import torch
from checks import assert_exact, call, expected_of, gradient_of, unrolled_of, warm_world
from problems import PROBLEMS
from reference import discriminators
from snapshot import changed, snapshot
from torch import nn
from torch.autograd.graph import register_multi_grad_hook, save_on_cpu, saved_tensors_hooks
from torch.autograd.profiler import profile as autograd_profile
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakTensorKeyDictionary

from unroll_wrap import (
    FiniteDifference,
    Recompute,
    Store,
    UnrolledGeneratorLoss,
    is_unrolling,
    non_saturating,
    torch_private,
)
from unroll_wrap.evaluation import exchange, hooks
from unroll_wrap.evaluation.stand_ins import _tensor_for
from unroll_wrap.torch_private import swap_tensors

STEPS = 3
d_loss, g_loss = non_saturating


def params_of(world):
    return [p for D in discriminators(world.discriminator) for p in D.parameters()]


def kept_as_they_are():
    return saved_tensors_hooks(lambda t: t, lambda t: t)


@contextlib.contextmanager
def referred(world):
    """As torch's CUDA graphs refer to tensors, and as caches of users do."""
    weak = (
        [torch._C._WeakTensorRef(p) for p in params_of(world)],
        WeakTensorKeyDictionary({p: 1 for p in params_of(world)}),
    )
    yield
    assert len(weak[1]) == len(weak[0])


OBSERVERS = {
    "shapes": lambda _: profile(record_shapes=True),
    "stacks": lambda _: profile(with_stack=True),
    "flops and memory": lambda _: profile(with_flops=True, profile_memory=True),
    "autograd's profiler": lambda _: autograd_profile(record_shapes=True),
    "weak references": referred,
    "saved as they are": lambda _: kept_as_they_are(),
    "saved on the CPU": lambda _: save_on_cpu(),
    "changes of saved tensors": lambda _: torch.autograd.graph.allow_mutation_on_saved_tensors(),
}
WORLDS = ["mlp", "batchnorm_two_batches", "spectral_norm_new", "gru", "dropout", "checkpointed", "multihead_attention"]


def observed(name, observer, steps=STEPS, mode="argument", **options):
    """The value and the gradient of a call under an observer; nothing of the user's may have changed."""
    world = warm_world(name)
    unrolled = unrolled_of(world, steps=steps, **options)
    before = snapshot(world)
    with observer(world):
        loss = call(world, unrolled, mode)
    assert changed(before, snapshot(world)) == [] and not _tensor_for
    return loss, gradient_of(loss, world)


def plainly(name, **options):
    return observed(name, lambda _: contextlib.nullcontext(), **options)


def same(one, other):
    return one[0].item() == other[0].item() and all(map(torch.equal, one[1], other[1]))


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("name", WORLDS)
def test_under_an_observer(name, observer):
    """Value and gradient to the oracle's precision, with the batch as arguments and captured."""
    for mode in ("argument", "closure"):
        world, expected = warm_world(name), expected_of(name, "adam", STEPS)
        unrolled = unrolled_of(world, steps=STEPS)
        before = snapshot(world)
        with OBSERVERS[observer](world):
            loss = call(world, unrolled, mode)
            assert changed(before, snapshot(world)) == [] and not _tensor_for
            assert_exact(loss, world, expected, PROBLEMS[name].gap)


@pytest.mark.parametrize("backward", [Store(), Recompute(), FiniteDifference()], ids=repr)
@pytest.mark.parametrize("observer", ["shapes", "stacks", "weak references"])
def test_to_the_last_bit(observer, backward):
    """With every backward, and K = 0."""
    for steps in (0, STEPS):
        under = observed("batchnorm_two_batches", OBSERVERS[observer], steps=steps, backward=backward)
        assert same(under, plainly("batchnorm_two_batches", steps=steps, backward=backward))
    assert not same(under, plainly("batchnorm_two_batches", steps=1, backward=backward))


def test_every_problem_under_a_profiler():
    """To the last bit, whatever D is made of."""
    plain = {name: plainly(name) for name in PROBLEMS}
    with profile(record_shapes=True):
        assert [name for name in PROBLEMS if not same(plainly(name), plain[name])] == []


def test_torch_refuses_to_exchange_what_a_profiler_has_seen():
    """The control: without stand-ins there is torch's own error."""
    one, other = torch.ones(2), torch.zeros(2)
    with profile(record_shapes=True):
        one + other
        with pytest.raises(RuntimeError, match="no weakrefs"):
            swap_tensors(one, other)


def test_hooks_that_keep_the_users_object_would_be_wrong(monkeypatch):
    """The control: exchanged contents, and a hook that keeps a tensor object, give the gradient at other weights."""
    right = plainly("batchnorm_two_batches")
    monkeypatch.setattr(exchange, "saving_hooks", lambda: False)
    wrong = observed("batchnorm_two_batches", OBSERVERS["saved as they are"])
    assert wrong[0].item() == right[0].item()
    assert not all(map(torch.allclose, wrong[1], right[1]))


def test_torch_26_sees_hooks_too_and_leaves_them():
    """It has no function that tells them, so that every call failed; whoever has disabled them finds them disabled."""
    asked = []
    with saved_tensors_hooks(lambda t: asked.append("pack") or t, lambda t: asked.append("unpack") or t):
        assert torch_private._refused_to_disable_hooks() and torch_private.saving_hooks()
        assert asked == []
        torch.ones(2, requires_grad=True).exp()
    assert asked == ["pack"]
    assert not torch_private._refused_to_disable_hooks() and not torch_private.saving_hooks()
    with torch.autograd.graph.disable_saved_tensors_hooks("mine"):
        assert not torch_private._refused_to_disable_hooks()
        with pytest.raises(RuntimeError, match="mine"), kept_as_they_are():
            pass
    with kept_as_they_are():
        pass


@pytest.mark.parametrize("mode", ["argument", "closure"])
@pytest.mark.parametrize("name", ["mlp", "batchnorm_two_batches", "spectral_norm_new"])
def test_hooks_on_saved_tensors_that_d_sets_itself(name, mode):
    """From the middle of a loss on."""
    world, expected = warm_world(name), expected_of(name, "adam", STEPS)
    first = discriminators(world.discriminator)[0]
    forward = first.forward

    def saving(*args, **kwargs):
        with kept_as_they_are():
            return forward(*args, **kwargs)

    first.forward = saving
    unrolled = unrolled_of(world, steps=STEPS)
    before = snapshot(world)
    loss = call(world, unrolled, mode)
    assert changed(before, snapshot(world)) == []
    assert_exact(loss, world, expected, PROBLEMS[name].gap)


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(x, scale)
        return x * scale

    @staticmethod
    def backward(ctx, grad):
        x, scale = ctx.saved_tensors
        return grad * scale, (grad * x).sum(0)


class Scaling(nn.Module):
    """A layer whose parameter goes to an autograd function."""

    apply = staticmethod(lambda *args: Scaled.apply(*args))

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 4, dtype=torch.float64))

    def forward(self, x):
        return type(self).apply(x, self.scale)


class KeptApply(Scaling):
    apply = staticmethod(Scaled.apply)


def scaling(kind, around):
    torch.manual_seed(0)
    D = nn.Sequential(nn.Linear(2, 4), kind(), nn.Tanh(), nn.Linear(4, 1)).double()
    z, G = torch.randn(8, 3, dtype=torch.float64), nn.Linear(3, 2).double()
    optimizer = torch.optim.SGD(D.parameters(), lr=0.1, momentum=0.9)
    unrolled = UnrolledGeneratorLoss(D, optimizer, d_loss, g_loss, steps=STEPS)
    with around:
        loss = unrolled(torch.randn(8, 2, dtype=torch.float64), G(z))
    return loss, torch.autograd.grad(loss, list(G.parameters()))


def test_an_autograd_function_of_a_parameter():
    """It is called past __torch_function__."""
    plain = scaling(Scaling, contextlib.nullcontext())
    assert same(scaling(Scaling, profile(record_shapes=True)), plain)
    assert same(scaling(KeptApply, contextlib.nullcontext()), plain)


def test_what_torch_does_not_see_is_refused():
    """An apply that was kept before the call, as code in C++ would be: exact, and refused where it cannot be."""
    with pytest.raises(RuntimeError, match="to code that torch does not see"):
        scaling(KeptApply, profile(record_shapes=True))


@pytest.mark.parametrize("steps", [0, STEPS])
@pytest.mark.parametrize("where", ["d_loss", "g_loss"])
def test_a_profiler_that_a_loss_starts(where, steps):
    """It is refused, D has its values and flags back, and the next call is right."""
    world, kept = warm_world("batchnorm_two_batches"), []
    right = plainly("batchnorm_two_batches", steps=steps)

    def profiling(loss):
        def within(*args):
            kept.append(profile(record_shapes=True))
            with kept[-1]:
                return loss(*args)

        return within

    if steps == 0 and where == "d_loss":
        return
    unrolled = unrolled_of(world, steps=steps)
    tensors = [t for D in discriminators(world.discriminator) for t in (*D.parameters(), *D.buffers())]
    before = [(id(t), t.clone(), t.requires_grad, t.grad, t.data_ptr(), t._version) for t in tensors]
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="Start a profiler around the call"):
        call(world, unrolled, **{where: profiling(getattr(world, where))})
    now = [(id(t), t.clone(), t.requires_grad, t.grad, t.data_ptr(), t._version) for t in tensors]
    assert all(
        torch.equal(a[1], b[1]) and (*a[:1], *a[2:]) == (*b[:1], *b[2:]) for a, b in zip(before, now, strict=True)
    )
    assert not is_unrolling() and not _tensor_for
    torch.set_rng_state(state)
    loss = call(world, unrolled)
    assert same((loss, gradient_of(loss, world)), right)


@pytest.mark.parametrize("name", ["mlp", "spectral_norm_new", "gru"])
def test_a_flop_counter(name):
    """It hooks the gradients of what a module is given, parameters among them."""
    world, expected = warm_world(name), expected_of(name, "adam", STEPS)
    unrolled = unrolled_of(world, steps=STEPS)
    with FlopCounterMode(display=False) as counter:
        loss = call(world, unrolled)
        gradient = gradient_of(loss, world)
    assert counter.get_total_flops() > 0
    assert_exact(loss, world, expected, PROBLEMS[name].gap)
    assert len(gradient) == len(world.inputs)


def test_torch_has_no_answer_for_leaves():
    """The control: autograd.grad raises where backward() does not, and does so again after a call."""
    plainly("mlp")
    leaf = torch.ones(2, requires_grad=True)
    register_multi_grad_hook([leaf], lambda found: None)
    leaf.sum().backward()
    with pytest.raises(RuntimeError, match="A leaf node"):
        torch.autograd.grad(leaf.sum(), leaf)
    assert hooks.leaves_observed._before == []


class Kind(nn.Parameter):
    pass


class Choosy(nn.Module):
    """It asks for the very class of its parameter, which one that is stood in for has not."""

    def __init__(self):
        super().__init__()
        self.scale = Kind(torch.linspace(0.5, 1.5, 4, dtype=torch.float64))

    def forward(self, x):
        return x * self.scale if type(self.scale) is Kind else x


def test_the_very_class_of_a_parameter():
    """It is proven in a first call, and again in the first one under a profiler, which is refused."""
    torch.manual_seed(0)
    D = nn.Sequential(nn.Linear(2, 4), Choosy(), nn.Tanh(), nn.Linear(4, 1)).double()
    G, real, z = nn.Linear(3, 2).double(), torch.randn(8, 2).double(), torch.randn(8, 3).double()
    unrolled = UnrolledGeneratorLoss(D, torch.optim.SGD(D.parameters(), lr=0.1), d_loss, g_loss, steps=STEPS)
    before = unrolled(real, G(z))
    for keeping in (profile(record_shapes=True), kept_as_they_are()):
        with keeping, pytest.raises(ValueError, match="others stand in for them"):
            unrolled(real, G(z))
    del keeping
    gc.collect()
    assert torch.equal(unrolled(real, G(z)), before)
    weak = torch._C._WeakTensorRef(D[0].weight)
    with pytest.raises(ValueError, match="others stand in for them"):
        unrolled(real, G(z))
    assert not weak.expired()
