"""An inner step and its pullback as two compiled functions of plain tensors, without autograd.

The traced code is ``Unroll`` itself, the pullback included, so that the compiler sees all of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ...evaluation.evaluation import Evaluation
from ...evaluation.precision import length
from ...live.memory import address
from ...optimizers.block import Block, each, pairs, values_of
from ...optimizers.closed import tensors_of
from ...optimizers.update import Update
from ...unrolling.one_process import Grads
from ...unrolling.step import Point
from ...unrolling.step_gradients import gradients
from ...unrolling.unroll import Unroll
from .functions import GRADIENT, Batch, Functions, followed, in_closed_form, inputs_of
from .inductor import compile_graph, trace
from .partition import partition


class Taken(NamedTuple):
    """What the pullback of a step needs."""

    program: "Program"  # The compiled functions of the step.
    start: Point  # θ^k in the blocks that these functions use.
    batch: Batch  # The arguments of the loss in this step.
    kept: Sequence[Tensor]  # What the compiled step has kept for its pullback.
    update: Update | None  # The update by the rules, where that is no part of the compiled step.


class Program:
    """The compiled step for inputs of one kind.

    It contains the network's gradient and the optimizer's rule, if the rule is in closed form and nothing comes between
    the two. Otherwise it contains the gradient only, and the rule and the transforms run eagerly.

    Attributes:
        kept: the bytes that a step keeps for its pullback besides its arguments.
        proven: the number of steps of a call in which it has been compared with what ``Unroll.step`` does.
        noise: how far apart the gradients of each parameter were there, at most.

    Raises:
        ValueError: the loss cannot be compiled, or the compiled functions return other values.
        FloatingPointError: the loss is not finite, so no values can be compared.
    """

    def __init__(self, unroll: Unroll, point: Point, batch: Batch) -> None:
        grads = _checked_gradients(unroll, point, batch)
        self._used = [g is not None for g in grads]
        self._whole = all(self._used) and in_closed_form(unroll, point)
        start = self._start(point)
        # The tracer takes a leaf for a constant unless an operator has made it.
        plain_leaves = replace(unroll.evaluate, leaf=lambda p: p.detach().requires_grad_())
        own, traced = Functions(unroll, start, batch), Functions(replace(unroll, evaluate=plain_leaves), start, batch)
        # Compare at a state as large as the gradient, where every rule is smooth and an error in the gradient shows.
        size = length(grads) / sum(g.numel() for g in grads if g is not None) ** 0.5 or 1.0
        smooth = [b._replace(state=each(b, lambda t: torch.full_like(t, size)).state) for b in start.blocks]
        primals = inputs_of(start._replace(blocks=smooth), batch)
        expected = own.step(primals)
        self._results, self.kept, self.proven, self.noise = len(expected), 0, 0, expected[0].new_zeros(())
        if not unroll.evaluate.second_order:
            self._step = compile_graph(trace(lambda *tensors: traced.step(tensors), *primals), primals)
            _compare(self._call(primals)[0], expected)
            return
        tangents = expected[1 : 1 + sum(len(tensors_of(values_of(b))) for b in start.blocks)]
        joint = trace(lambda primals, tangents: traced.both(primals, tangents), primals, tangents)
        step, pullback = partition(joint, primals, tangents, len(expected))
        self._step = compile_graph(step, primals)
        results, kept = self._call(primals)
        _compare(results, expected)
        arguments = {address(t) for t in primals}
        self.kept = sum(t.nbytes for t in kept if address(t) not in arguments)
        self._pullback = compile_graph(pullback, [*kept, *tangents])
        with torch.no_grad():
            found = self._pullback(*kept, *tangents)
        _compare(found, own.both(primals, tangents)[len(expected) :])
        self._found = traced.found

    def step(
        self, unroll: Unroll, point: Point, batch: Batch, differentiable: bool, right: Callable[[Tensor, Grads], bool]
    ) -> tuple[Point, Taken] | None:
        """Take one step as ``Unroll.step`` does; return None and change nothing unless ``right(loss, gradients)``."""
        loss, following, grads, taken = self._take(point, batch)
        if not right(loss, grads):
            return None
        unroll.d_losses.append(loss)
        if self._whole:
            return following._replace(blocks=[followed(b) for b in following.blocks]), taken
        grads = unroll.ranks.gradients(grads, batch.arguments[0]) or grads
        update, _ = unroll.update(point, grads, differentiable)
        return following._replace(blocks=update.following()), taken._replace(update=update)

    def loss_and_gradients(self, point: Point, batch: Batch) -> tuple[Tensor, Grads]:
        """Return the loss and its gradients as the compiled step computes them."""
        loss, _, grads, _ = self._take(point, batch)
        return loss, grads

    def pullback(self, unroll: Unroll, taken: Taken, cotangent: list[Block]) -> list[Block]:
        """Return the cotangent of θ^k from that of θ^{k+1}, as ``Unroll.pullback`` does."""
        if not taken.update:
            return self._back(unroll, taken, cotangent)
        bars, of_old = taken.update.pullback(cotangent)
        of_new = [b._replace(params=bar) for b, bar in zip(taken.start.blocks, bars, strict=True)]
        found = self._back(unroll, taken, of_new)
        return taken.update.cotangent(of_old, [b.params for b in found])

    def _take(self, point: Point, batch: Batch) -> tuple[Tensor, Point, Grads, Taken]:
        """Return the loss, the next point, the gradients, and what the pullback needs, by the compiled step."""
        start = self._start(point)
        (loss, *results), kept = self._call(inputs_of(start, batch))
        rest = iter(results)
        blocks = [each(b, lambda _: next(rest)) for b in start.blocks]
        buffers = tuple(next(rest) for _ in start.buffers)
        grads = [*rest] if self._whole else [b.params if u else None for b, u in zip(blocks, self._used, strict=True)]
        return loss, Point(blocks, buffers), grads, Taken(self, start, batch, kept, None)

    def _call(self, primals: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Return the results of the compiled step, and what it has kept for its pullback."""
        with torch.no_grad():
            found = self._step(*primals)
        return found[: self._results], found[self._results :]

    def _start(self, point: Point) -> Point:
        """Return the point in the blocks that the compiled functions use."""
        if self._whole:
            return point
        return point._replace(blocks=[Block(GRADIENT, (i,), (p.shape,), p, ()) for i, p in enumerate(point.params())])

    def _back(self, unroll: Unroll, taken: Taken, cotangent: list[Block]) -> list[Block]:
        """Return the cotangent that the compiled pullback gives, and add that of the batch to the sensitivity."""
        given = pairs(taken.start.blocks, cotangent)
        if all(bar is None for _, bar in given):
            return cotangent
        with torch.no_grad():
            bars = [torch.zeros_like(t) if bar is None else bar for t, bar in given]
            rest = iter(self._pullback(*taken.kept, *bars))
        found = [each(b, lambda _: next(rest)) for b in taken.start.blocks]
        of_batch = [next(rest) if there else None for there in self._found]
        unroll.sensitivity.second_term |= unroll.sensitivity.add(taken.batch.tensors, of_batch)
        return found


def run_eagerly(unroll: Unroll, point: Point, batch: Batch) -> Evaluation:
    """Run ``d_loss`` at a point for a comparison; unlike ``Unroll.evaluate_d``, this is no inner step of the call."""
    names, positional = unroll.names, batch.arguments[0]
    return unroll.evaluate(
        names.player_loss, unroll.d_loss, point.params(), point.buffers, positional, False, point.contents
    )


def _checked_gradients(unroll: Unroll, point: Point, batch: Batch) -> Grads:
    """Return the gradients of ``d_loss`` by autograd; raise as ``Program`` does if it cannot be compiled."""
    if unroll.evaluate.autocast.active:
        raise ValueError("autocast is on, in whose 16 bits compiled code rounds otherwise")
    if unroll.evaluate.hooks:
        who = unroll.names.short
        raise ValueError(f"{who}'s parameters have gradient hooks. Pass what they do as grad_transform")
    evaluation = run_eagerly(unroll, point, batch)
    if not evaluation.loss.isfinite().all():
        raise FloatingPointError(f"{evaluation.name} is not finite, and nothing can be compared with it")
    grads = gradients(unroll.evaluate, evaluation)[0]
    # The live buffers hold again what they held before this run.
    unroll.evaluate.swap.out()
    return grads


def _compare(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Raise ValueError if compiled functions have returned other values than they should."""
    longest = max(float(t.norm()) for t in expected if t.is_floating_point())
    for one, other in zip(found, expected, strict=True):
        if not one.is_floating_point():
            right = one.equal(other)
        else:
            # Rounding is a larger part of results that are small beside the rest, as the gradient of fake often is.
            eps = torch.finfo(one.dtype).eps
            right = (one - other).norm() <= 100 * eps**0.75 * other.norm() + 10 * eps * longest
        if not right:
            raise ValueError("its compiled derivatives are not its own")
