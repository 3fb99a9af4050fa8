"""`clip_grad_norm` and `clip_grad_value` are torch's own clipping between backward and step, in real steps."""

import pytest
import reference
import torch
from checks import assert_exact, call, expect, oracle, unrolled_of, warm_world
from refusals import refused

from unroll_wrap import clip_grad_norm, clip_grad_value, verify

INF = float("inf")
CASES = {
    "norm": (clip_grad_norm(0.5), lambda params: torch.nn.utils.clip_grad_norm_(params, 0.5), "sgd_momentum"),
    "norm, adam": (clip_grad_norm(0.2), lambda params: torch.nn.utils.clip_grad_norm_(params, 0.2), "adam"),
    "1-norm": (clip_grad_norm(0.5, 1), lambda params: torch.nn.utils.clip_grad_norm_(params, 0.5, 1), "sgd_momentum"),
    "largest entry": (
        clip_grad_norm(0.1, norm_type=INF),
        lambda params: torch.nn.utils.clip_grad_norm_(params, 0.1, INF),
        "sgd_momentum",
    ),
    "value": (clip_grad_value(0.1), lambda params: torch.nn.utils.clip_grad_value_(params, 0.1), "sgd_momentum"),
    "value, adam": (clip_grad_value(0.04), lambda params: torch.nn.utils.clip_grad_value_(params, 0.04), "adam"),
}


@pytest.mark.parametrize("case", CASES)
def test_exact_against_real_steps_with_torchs_clipping(case):
    transform, real, optimizer = CASES[case]
    world = warm_world("mlp", optimizer)
    expected = expect(world, steps=3, after_backward=real)
    assert_exact(call(world, unrolled_of(world, steps=3, grad_transform=transform)), world, expected)
    # The control: without clipping the steps are others.
    assert abs(oracle(reference.value, world, steps=3) - expected.value) > 1e-3


def test_a_bound_that_is_never_reached_changes_nothing():
    world = warm_world()
    plain = call(world, unrolled_of(world, steps=3)).item()
    assert call(world, unrolled_of(world, steps=3, grad_transform=clip_grad_norm(1e6))).item() == plain
    assert call(world, unrolled_of(world, steps=3, grad_transform=clip_grad_value(1e6))).item() == plain


@pytest.mark.parametrize("transform", [clip_grad_norm(0.5), clip_grad_value(0.5)])
def test_a_gradient_of_zeros_stays_finite(transform):
    """A norm has no slope at 0, and torch's clipping multiplies by 1 there."""
    grads = [torch.zeros(3, requires_grad=True), torch.zeros(2, requires_grad=True)]
    found = transform(grads)
    slopes = torch.autograd.grad(sum(g.sum() for g in found), grads)
    assert all(torch.equal(g, torch.zeros_like(g)) for g in found)
    assert all(torch.equal(s, torch.ones_like(s)) for s in slopes)
    assert transform([]) == []


def test_verify_sees_the_clipping():
    """And says so in a repr that can be pasted."""
    world = warm_world()
    unrolled = unrolled_of(world, steps=3, grad_transform=clip_grad_norm(0.2))
    assert verify(unrolled, *world.batch())
    assert repr(unrolled.grad_transform) == "clip_grad_norm(max_norm=0.2, norm_type=2.0)"


@pytest.mark.parametrize("bound", [0, -1.0, "1", None, True, float("nan"), torch.tensor(1.0)])
@pytest.mark.parametrize("kind", [clip_grad_norm, clip_grad_value, lambda bound: clip_grad_norm(1.0, bound)])
def test_a_bound_that_is_none(kind, bound):
    refused(warm_world(), lambda: kind(bound), "(max_norm|clip_value|norm_type) is", "positive number")


def test_the_class_alone_is_refused_with_the_bound_to_add():
    """`grad_transform=clip_grad_norm` forgets the bound."""
    world = warm_world()
    refused(world, lambda: unrolled_of(world, steps=1, grad_transform=clip_grad_norm), "the class clip_grad_norm")
