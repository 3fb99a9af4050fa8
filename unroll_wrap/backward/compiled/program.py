"""An inner step as two compiled functions, forwards and back, of plain tensors and without autograd.

What is traced is ``Unroll`` itself. Autograd through one compiled step would keep what its kernels were fused to avoid,
so the way back computes the step again: that costs less than to read and write what was kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ...evaluation.precision import length
from ...optimizers.block import Block, each, pairs
from ...optimizers.update import Update
from ...unrolling.step import Point
from ...unrolling.unroll import Unroll
from .functions import GRADIENT, Batch, Functions, followed, in_closed_form, inputs_of
from .inductor import compile_function


class Taken(NamedTuple):
    """What the pullback of a step starts from.

    Attributes:
        program: the functions.
        start: θ^k as they have it.
        batch: of the step.
        inputs: all that the step was computed from.
        update: the rules' part, where that is apart.
    """

    program: "Program"
    start: Point
    batch: Batch
    inputs: list[Tensor]
    update: Update | None


class Program:
    """The compiled step for inputs of one kind.

    One function is both the network's gradient and the optimizer's rule, where the rule is in closed form and nothing
    comes between the two. Otherwise it is the gradient alone, and rule and transforms run eagerly.

    Args:
        unroll: a call.
        point: where it starts.
        batch: of its first step.

    Raises:
        ValueError: the loss cannot be compiled, or the compiled functions are not its own.
        FloatingPointError: there is nothing to compare them with.
    """

    def __init__(self, unroll: Unroll, point: Point, batch: Batch) -> None:
        if unroll.evaluate.autocast.active:
            raise ValueError("autocast is on, in whose 16 bits compiled code rounds otherwise")
        if unroll.evaluate.hooks:
            raise ValueError("D's parameters have gradient hooks. Pass what they do as grad_transform")
        positional = batch.arguments[0]
        evaluation = unroll.evaluate("d_loss", unroll.d_loss, point.params(), point.buffers, positional, walk=False)
        if not evaluation.loss.isfinite().all():
            raise FloatingPointError("d_loss is not finite, and nothing can be compared with it")
        grads = unroll.gradients(evaluation)[0]
        self._used = [g is not None for g in grads]
        self._whole = all(self._used) and in_closed_form(unroll, point)
        start = self._start(point)
        # Plain leaves, made by an operator: to the tracer one made without is a constant.
        plain_leaves = replace(unroll.evaluate, leaf=lambda p: p.detach().requires_grad_())
        own, traced = Functions(unroll, start, batch), Functions(replace(unroll, evaluate=plain_leaves), start, batch)
        # From a state as large as the gradient, where every rule is smooth and an error in the gradient shows.
        size = length(grads) / sum(g.numel() for g in grads if g is not None) ** 0.5 or 1.0
        smooth = [b._replace(state=each(b, lambda t: torch.full_like(t, size)).state) for b in start.blocks]
        inputs = inputs_of(start._replace(blocks=smooth), batch)
        self._step = compile_function(traced.step, inputs)
        results = _same(self._step, own.step, inputs)
        if unroll.evaluate.second_order:
            inputs += results[1 : len(results) - len(start.buffers)]
            self._pullback = compile_function(traced.pullback, inputs)
            _same(self._pullback, own.pullback, inputs)
        self._found = traced.found

    def step(
        self, unroll: Unroll, point: Point, batch: Batch, differentiable: bool, right: Callable[[Tensor], bool]
    ) -> tuple[Point, Taken] | None:
        """As ``Unroll.step``; None, and nothing has happened, if the loss is not ``right``."""
        start = self._start(point)
        inputs = inputs_of(start, batch)
        with torch.no_grad():
            loss, *results = self._step(*inputs)
        if not right(loss):
            return None
        unroll.d_losses.append(loss)
        rest = iter(results)
        blocks = [each(b, lambda _: next(rest)) for b in start.blocks]
        buffers = tuple(rest)
        if self._whole:
            return Point([followed(b) for b in blocks], buffers), Taken(self, start, batch, inputs, None)
        grads = [b.params if used else None for b, used in zip(blocks, self._used, strict=True)]
        grads = unroll.ranks.gradients(grads, batch.arguments[0]) or grads
        update, _ = unroll.update(point, grads, differentiable)
        return Point(update.following(), buffers), Taken(self, start, batch, inputs, update)

    def pullback(self, unroll: Unroll, taken: Taken, cotangent: list[Block]) -> list[Block]:
        """As ``Unroll.pullback``."""
        if not taken.update:
            return self._back(unroll, taken, cotangent)
        bars, of_old = taken.update.pullback(cotangent)
        of_new = [b._replace(params=bar) for b, bar in zip(taken.start.blocks, bars, strict=True)]
        found = self._back(unroll, taken, of_new)
        return taken.update.cotangent(of_old, [b.params for b in found])

    def _start(self, point: Point) -> Point:
        """The point as the functions have it."""
        if self._whole:
            return point
        return point._replace(blocks=[Block(GRADIENT, (i,), (p.shape,), p, ()) for i, p in enumerate(point.params())])

    def _back(self, unroll: Unroll, taken: Taken, cotangent: list[Block]) -> list[Block]:
        """By the function alone."""
        given = pairs(taken.start.blocks, cotangent)
        if all(bar is None for _, bar in given):
            return cotangent
        with torch.no_grad():
            bars = [torch.zeros_like(t) if bar is None else bar for t, bar in given]
            rest = iter(self._pullback(*taken.inputs, *bars))
        found = [each(b, lambda _: next(rest)) for b in taken.start.blocks]
        of_batch = [next(rest) if there else None for there in self._found]
        unroll.sensitivity.second_term |= unroll.sensitivity.add(taken.batch.tensors, of_batch)
        return found


def _same(
    function: Callable[..., Sequence[Tensor]], own: Callable[..., list[Tensor]], inputs: list[Tensor]
) -> list[Tensor]:
    """The results of ``own``.

    Raises:
        ValueError: those of ``function`` are others.
    """
    expected = [t.detach() for t in own(*inputs)]
    with torch.no_grad():
        found = function(*inputs)
    longest = max(float(t.norm()) for t in expected if t.is_floating_point())
    for one, other in zip(found, expected, strict=True):
        if not one.is_floating_point():
            right = one.equal(other)
        else:
            # Of what is small beside the rest, as a gradient by fake often is, rounding is a larger part.
            eps = torch.finfo(one.dtype).eps
            right = (one - other).norm() <= 100 * eps**0.75 * other.norm() + 10 * eps * longest
        if not right:
            raise ValueError("its compiled derivatives are not its own")
    return expected
