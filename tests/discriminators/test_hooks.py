"""Hooks on the tensors and nodes of a loss's graph: they fire in a real step's backward pass, and are then done."""

import functools
import threading
from contextlib import contextmanager

import pytest
import torch
from checks import MODES, assert_exact_in, call, expect, gradient_of, unrolled_of, warm_world
from optimizers import OPTIMIZERS
from problems import mlp_module, plain, softplus
from torch import nn
from torch.utils.hooks import RemovableHandle

from unroll_wrap import Compiled, FiniteDifference, Recompute, Store, verify
from unroll_wrap.evaluation import evaluate
from unroll_wrap.unrolling import unroll

SCALES = torch.tensor([3.0, 0.5, 2.0, 1.0, -1.0], dtype=torch.float64)


def hidden_of(change):
    """D's hidden features, changed or hooked, on their way to its head."""

    def d_loss(D, real, fake):
        h = torch.tanh(D[0](fake))
        return softplus(-D(real)).mean() + softplus(D[2](change(h))).mean()

    return d_loss


def hooked(hook, on=lambda h: h):
    def change(h):
        on(h).register_hook(hook)
        return h

    return hidden_of(change)


def during(register):
    """With a hook on D's modules for as long as the forward pass takes."""

    def d_loss(D, real, fake):
        handle = register(D)
        try:
            return softplus(-D(real)).mean() + softplus(D(fake)).mean()
        finally:
            handle.remove()

    return d_loss


def penalised(D, real, fake):
    """The hook changes the gradient that is penalised, and then that of the loss; another one the slope's own."""
    between = (0.3 * real + 0.7 * fake).requires_grad_() if not fake.requires_grad else 0.3 * real + 0.7 * fake
    h = torch.tanh(D[0](between))
    h.register_hook(lambda g: SCALES * g)
    (slope,) = torch.autograd.grad(D[2](h).sum(), between, create_graph=True)
    slope.register_hook(lambda g: 2 * g)
    return softplus(-D(real)).mean() + softplus(D(fake)).mean() + slope.square().sum(1).mean()


def looked_on(h):
    torch.autograd.graph.register_multi_grad_hook([h, h * 2], lambda grads: None)
    return h


without = during(lambda D: D[1].register_forward_hook(lambda *_: None))
CHANGING = {
    "tensor": hooked(lambda g: SCALES * g),
    "tensor, bent": hooked(lambda g: (30 * g).tanh()),
    "two on one tensor": hidden_of(lambda h: (h.register_hook(torch.sin), h.register_hook(lambda g: 2 * g), h)[-1]),
    "before a node": hidden_of(lambda h: (h.grad_fn.register_prehook(lambda of: (SCALES * of[0],)), h)[-1]),
    "after a node": hidden_of(lambda h: (h.grad_fn.register_hook(lambda found, of: (SCALES * found[0],)), h)[-1]),
    "module": during(lambda D: D[2].register_full_backward_hook(lambda m, to_x, to_y: (SCALES * to_x[0],))),
    "before a module": during(lambda D: D[1].register_full_backward_pre_hook(lambda m, to_y: (SCALES * to_y[0],))),
    "penalty": penalised,
}
LOOKING_ON = {
    "tensor": hooked(lambda g: None),
    "several tensors": hidden_of(looked_on),
    "retained": hidden_of(lambda h: (h.retain_grad(), h)[-1]),
}


def world_with(d_loss):
    torch.manual_seed(0)
    return plain(mlp_module(), OPTIMIZERS["adam"], d_loss=d_loss).warm()


@pytest.mark.parametrize("backward", [Store(), Recompute(every=2)], ids=str)
@pytest.mark.parametrize("name", list(CHANGING))
def test_hooks_that_change_gradients(name, backward):
    """The value is that of real steps, which go by what the hooks return, and the gradient its derivative."""
    world = world_with(CHANGING[name])
    assert_exact_in(MODES, world, unrolled_of(world, steps=3, backward=backward), expect(world, steps=3))


@pytest.mark.parametrize("name", list(CHANGING))
def test_were_they_to_fire_again(name, monkeypatch):
    """The control."""

    @contextmanager
    def nothing():
        yield []

    monkeypatch.setattr(evaluate, "noted", nothing)
    # By formulas they would not fire at all.
    monkeypatch.setattr(unroll, "adjoint", lambda *_: None)
    world = world_with(CHANGING[name])
    with pytest.raises(AssertionError, match="gradient is off"):
        assert_exact_in(MODES[:1], world, unrolled_of(world, steps=3), expect(world, steps=3))


@pytest.mark.parametrize("name", list(LOOKING_ON))
def test_hooks_that_look_on(name):
    world = world_with(LOOKING_ON[name])
    assert_exact_in(MODES, world, unrolled_of(world, steps=3), expect(world, steps=3))


def test_hooks_on_modules_from_before_the_call():
    world = world_with(without)
    world.discriminator[2].register_full_backward_hook(lambda m, to_x, to_y: (SCALES * to_x[0],))
    world.warm()
    # G's own gradient goes by the hook too: what depends on it is the inner steps alone.
    world.g_loss = lambda D, real, fake: softplus(-nn.functional.linear(torch.tanh(D[0](fake)), D[2].weight)).mean()
    assert_exact_in(MODES, world, unrolled_of(world, steps=3), expect(world, steps=3))


def test_verify_names_hooks_that_no_difference_shows():
    """The gradient of g_loss goes by them too, and is then no derivative."""
    world = world_with(without)
    unrolled = unrolled_of(world, steps=2)
    assert call(world, functools.partial(verify, unrolled)).passed
    world.discriminator[2].register_full_backward_hook(lambda m, to_x, to_y: (SCALES * to_x[0],))
    (problem,) = call(world, functools.partial(verify, unrolled)).problems
    assert "Linear in D has backward hooks" in problem


def test_hooks_of_several_parameters_look_on():
    """``register_multi_grad_hook`` on D's parameters, for a log: exact, and it hears of real steps alone."""
    world, heard = world_with(without), []
    torch.autograd.graph.register_multi_grad_hook(list(world.discriminator.parameters()), heard.append)
    torch.autograd.graph.register_multi_grad_hook(list(world.discriminator.parameters()), heard.append, mode="any")
    assert_exact_in(MODES, world, unrolled_of(world, steps=3), expect(world, steps=3))
    assert not heard
    world.warm(1)
    assert len(heard) == 2


@pytest.mark.parametrize("mode", MODES)
def test_hooks_in_the_generators_loss_fire_once(mode):
    def gradient(hook):
        def g_loss(D, real, fake):
            out = D(fake)
            out.register_hook(hook)
            return softplus(-out).mean()

        world = world_with(CHANGING["tensor"])
        world.g_loss = g_loss
        return gradient_of(call(world, unrolled_of(world, steps=2), mode), world)

    for doubled, once in zip(gradient(lambda g: 2 * g), gradient(lambda g: None), strict=True):
        assert torch.allclose(doubled, 2 * once, rtol=1e-10)


def test_compiled(caplog):
    world, backward = world_with(CHANGING["tensor, bent"]), Compiled()
    unrolled = unrolled_of(world, steps=3, backward=backward)
    for _ in range(2):
        assert_exact_in(MODES[:1], world, unrolled, expect(world, steps=3))
    assert backward.in_use, caplog.text


@pytest.mark.parametrize("name", list(LOOKING_ON))
def test_differences_with_hooks_that_look_on(name):
    world = world_with(LOOKING_ON[name])
    exact = gradient_of(call(world, unrolled_of(world, steps=3)), world)
    found = gradient_of(call(world, unrolled_of(world, steps=3, backward=FiniteDifference(central=True))), world)
    assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-9) for a, b in zip(found, exact, strict=True))


@pytest.mark.parametrize("name", list(CHANGING))
def test_differences_with_hooks_that_change_gradients_are_refused(name):
    """A difference along ḡ is a product with the Jacobian of the gradient, and wanted is one with its transpose."""
    world = world_with(CHANGING[name])
    with pytest.raises(RuntimeError, match=r"d_loss at inner step 0 has hooks.*Store\(\)"):
        unrolled_of(world, steps=3, backward=FiniteDifference())(*world.batch())


def test_what_a_loss_hooks_of_the_users_is_free_again():
    """Its own hook on a tensor that it captures goes, the user's stays; and torch is as it was."""
    world, init = world_with(without), RemovableHandle.__init__
    real, fake = world.batch()
    fake.register_hook(lambda g: 5 * g)

    def d_loss(D):
        fake.register_hook(lambda g: 7 * g)
        return softplus(-D(real)).mean() + softplus(D(fake)).mean()

    world.d_loss = d_loss
    loss = unrolled_of(world, steps=2)(g_loss=lambda D: softplus(-D(fake)).mean())
    assert len(fake._backward_hooks) == 1
    assert RemovableHandle.__init__ is init
    assert loss.isfinite()


def test_hooks_of_another_thread_are_its_own():
    world, kept = world_with(without), []

    def elsewhere():
        x = torch.ones(1, requires_grad=True) * 2
        x.register_hook(lambda g: 3 * g)
        kept.append(x)

    def d_loss(D, real, fake):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        return softplus(-D(real)).mean() + softplus(D(fake)).mean()

    world.d_loss = d_loss
    unrolled_of(world, steps=1)(*world.batch())
    assert len(kept[0]._backward_hooks) == 1


def test_differences_with_a_hook_that_scales_entries_of_a_parameter():
    """It belongs to the update: on the gradients that are subtracted it would stand on the wrong side."""
    world = warm_world()
    weight = world.discriminator[0].weight
    weight.register_hook(lambda g: g * torch.linspace(0.2, 3, g.numel(), dtype=g.dtype).view_as(g) + 0.1 * weight)
    found = [
        torch.cat([g.reshape(-1) for g in gradient_of(call(world, unrolled_of(world, steps=3, **options)), world)])
        for options in ({"backward": FiniteDifference(central=True)}, {}, {"stop_gradient": True})
    ]
    assert (found[0] - found[1]).norm() < 1e-6 * found[1].norm()
    assert (found[2] - found[1]).norm() > 1e-3 * found[1].norm()
