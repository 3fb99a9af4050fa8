"""An inner step as two compiled functions, forwards and back, of plain tensors and without autograd.

What is traced is ``Unroll`` itself. Autograd through one compiled step would keep what its kernels were fused to avoid,
so the way back computes the step again: that costs less than to read and write what was kept.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...call.batch import distinct, mapped, tensors_in
from ...evaluation.precision import length
from ...optimizers.block import Block, each, layout, pairs, regroup, values_of
from ...optimizers.closed import ClosedRule, tensors_of
from ...optimizers.rule import Pullback, UpdateRule
from ...optimizers.transforms import Transforms
from ...optimizers.update import Update
from ...unrolling.ranks import OneProcess
from ...unrolling.unroll import Point, Sensitivity, Step, Unroll
from .inductor import compile_function


class Batch(NamedTuple):
    """A batch of the user's.

    Attributes:
        arguments: what the losses take after D, and by keyword.
        tensors: all in there, each once, in the order in which they first come.
        detached: the same without graph.
    """

    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    tensors: list[Tensor]
    detached: list[Tensor]

    @classmethod
    def of(cls, batch: tuple[Any, ...], kwargs: dict[str, Any]) -> "Batch":
        """Its tensors found once, for all steps."""
        tensors = distinct(tensors_in(batch, kwargs))
        return cls((batch, kwargs), tensors, [t.detach() for t in tensors])

    def structure(self) -> Any:
        """All but the values of tensors, to compare.

        Raises:
            ValueError: there is something that cannot be compared.
        """
        place = {id(t): i for i, t in enumerate(self.tensors)}

        def of(value: Any) -> Any:
            if isinstance(value, Tensor):
                return Tensor, place[id(value)]
            if isinstance(value, dict):
                return type(value), *((key, of(item)) for key, item in value.items())
            if isinstance(value, (tuple, list, deque)):
                return type(value), *map(of, value)
            if value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device)):
                return type(value), value
            raise ValueError(
                f"there is a {type(value).__name__} in its arguments. Pass tensors, numbers and text alone"
            )

        return of(self.arguments)


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
        own, traced = _Functions(unroll, start, batch), _Functions(replace(unroll, evaluate=plain_leaves), start, batch)
        # From a state as large as the gradient, where every rule is smooth and an error in the gradient shows.
        size = length(grads) / sum(g.numel() for g in grads if g is not None) ** 0.5 or 1.0
        smooth = [b._replace(state=each(b, lambda t: torch.full_like(t, size)).state) for b in start.blocks]
        inputs = _inputs(start._replace(blocks=smooth), batch)
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
        inputs = _inputs(start, batch)
        with torch.no_grad():
            loss, *results = self._step(*inputs)
        if not right(loss):
            return None
        unroll.d_losses.append(loss)
        rest = iter(results)
        blocks = [each(b, lambda _: next(rest)) for b in start.blocks]
        buffers = tuple(rest)
        if self._whole:
            return Point([_followed(b) for b in blocks], buffers), Taken(self, start, batch, inputs, None)
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
        return point._replace(blocks=[Block(_GRADIENT, (i,), (p.shape,), p, ()) for i, p in enumerate(point.params())])

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


def in_closed_form(unroll: Unroll, point: Point) -> bool:
    """Whether a step is the network's gradient and rules in closed form, and nothing else.

    And in 32 bits at least: the numbers of a rule are tensors of its parameters' precision there, and in 16 bits 0.999
    is 1.
    """
    alone = type(unroll.ranks) is OneProcess and not unroll.transforms
    return alone and all(isinstance(b.rule, ClosedRule) and b.params.itemsize > 2 for b in point.blocks)


class _Functions:
    """A step and its pullback as functions of tensors alone.

    Both take the numbers of the rules, θ and state, the buffers and the batch; ``pullback`` also the cotangents of the
    new θ and state.

    Attributes:
        found: which tensors of the batch ``pullback`` has a cotangent for, known once it has run.
    """

    def __init__(self, unroll: Unroll, start: Point, batch: Batch) -> None:
        self._unroll = replace(unroll, transforms=Transforms(), ranks=OneProcess())
        self._start = start
        self._batch = batch
        self.found: list[bool] = []

    def step(self, *tensors: Tensor) -> list[Tensor]:
        """The loss, the new θ and state, and the buffers."""
        _, following, step, _ = self._run(iter(tensors), differentiable=False)
        loss = step.evaluation.loss.detach().reshape(())
        blocks = regroup(following.blocks, layout(self._start.blocks))
        return [loss, *(t for b in blocks for t in tensors_of(values_of(b))), *following.buffers]

    def pullback(self, *tensors: Tensor) -> list[Tensor]:
        """The cotangents of θ and state, and those that there are of the batch."""
        rest = iter(tensors)
        unroll, following, step, leaves = self._run(rest, differentiable=True)
        bars = [each(b, lambda _: next(rest)) for b in self._start.blocks]
        found = unroll.pullback(step, regroup(bars, layout(following.blocks)), first=False)
        assert found is not None
        of_start = pairs(self._start.blocks, regroup(found, layout(self._start.blocks)))
        of_old = [torch.zeros_like(t) if bar is None else bar for t, bar in of_start]
        of = {id(t): bar for t, bar in unroll.sensitivity.pairs()}
        self.found = [id(leaf) in of for leaf in leaves]
        return [*of_old, *(of[id(leaf)] for leaf in leaves if id(leaf) in of)]

    def _run(self, rest: Iterator[Tensor], differentiable: bool) -> tuple[Unroll, Point, Step, list[Tensor]]:
        blocks = [b._replace(rule=_numbered(b, rest)) for b in self._start.blocks]
        blocks = [each(b, lambda _: next(rest)) for b in blocks]
        # A compiler fuses what is done to each parameter with what made its gradient; to join all would come between.
        blocks = regroup(blocks, [(i,) for b in blocks for i in b.index])
        buffers = tuple(next(rest) for _ in self._start.buffers)
        leaf_of = {id(t): next(rest).detach().requires_grad_(t.requires_grad) for t in self._batch.tensors}
        batch, kwargs = mapped(lambda t: leaf_of[id(t)], self._batch.arguments)
        evaluate = replace(self._unroll.evaluate, kwargs=kwargs)
        unroll = replace(self._unroll, evaluate=evaluate, d_losses=[], sensitivity=Sensitivity())
        following, step = unroll.step(Point(blocks, buffers), 0, batch, differentiable)
        if step.evaluation.captured:
            raise ValueError("it reaches a generator. Pass fake as an argument")
        return unroll, following, step, list(leaf_of.values())


class _Numbered(ClosedRule):
    """A rule whose numbers are tensors."""

    def __init__(self, rule: ClosedRule, numbers: Any) -> None:
        self.numbers = lambda state: numbers  # noqa: ARG005
        self.descend, self.ascend, self.following = rule.descend, rule.ascend, rule.following


def _numbered(block: Block, rest: Iterator[Tensor]) -> UpdateRule:
    rule = block.rule
    if not isinstance(rule, ClosedRule):
        return rule
    kind = type(rule.numbers(block.state))
    return _Numbered(rule, kind(*next(rest).unbind()))


def _followed(block: Block) -> Block:
    """The block, whose tensors have moved, with its numbers moved too."""
    rule = block.rule
    assert isinstance(rule, ClosedRule)
    return block._replace(state=rule.following(block.state, tensors_of(block.state)))


class _Gradient(UpdateRule):
    """The gradient itself for the new parameter."""

    def with_pullback(self, param: Tensor, grad: Tensor, state: Any) -> tuple[Tensor, Any, Pullback]:  # noqa: ARG002
        """θ plays no part."""
        return grad, state, lambda bars, _: (bars[0], [None])  # pyright: ignore[reportReturnType]


_GRADIENT = _Gradient()


def _inputs(point: Point, batch: Batch) -> list[Tensor]:
    """What the functions are called with, in their order."""
    numbers = [
        b.params.new_tensor([float(n) for n in b.rule.numbers(b.state)])
        for b in point.blocks
        if isinstance(b.rule, ClosedRule)
    ]
    return [
        *numbers,
        *(t for b in point.blocks for t in tensors_of(values_of(b))),
        *(b.detach() for b in point.buffers),
        *batch.detached,
    ]


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
