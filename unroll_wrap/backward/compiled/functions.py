"""An inner step and its pullback as functions of tensors alone, to be compiled."""

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...call.batch import distinct, mapped, tensors_in
from ...optimizers.block import Block, each, layout, pairs, regroup, values_of
from ...optimizers.closed import ClosedRule, tensors_of
from ...optimizers.rule import Pullback, UpdateRule
from ...optimizers.transforms import Transforms
from ...unrolling.one_process import OneProcess
from ...unrolling.sensitivity import Sensitivity
from ...unrolling.step import Point, Step
from ...unrolling.unroll import Unroll


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


def in_closed_form(unroll: Unroll, point: Point) -> bool:
    """Whether a step is the network's gradient and rules in closed form, and nothing else.

    And in 32 bits at least: the numbers of a rule are tensors of its parameters' precision there, and in 16 bits 0.999
    is 1.
    """
    alone = type(unroll.ranks) is OneProcess and not unroll.transforms
    return alone and all(isinstance(b.rule, ClosedRule) and b.params.itemsize > 2 for b in point.blocks)


class Functions:
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


def followed(block: Block) -> Block:
    """The block, whose tensors have moved, with its numbers moved too."""
    rule = block.rule
    assert isinstance(rule, ClosedRule)
    return block._replace(state=rule.following(block.state, tensors_of(block.state)))


class _Gradient(UpdateRule):
    """The gradient itself for the new parameter."""

    def with_pullback(self, param: Tensor, grad: Tensor, state: Any) -> tuple[Tensor, Any, Pullback]:  # noqa: ARG002
        """θ plays no part."""
        return grad, state, lambda bars, _: (bars[0], [None])  # pyright: ignore[reportReturnType]


GRADIENT = _Gradient()


def inputs_of(point: Point, batch: Batch) -> list[Tensor]:
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
