"""An inner step and its pullback as functions of tensors only, which can be traced and compiled."""

from collections import deque
from collections.abc import Iterator, Sequence
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
    """The arguments of a loss, and the tensors in them."""

    arguments: tuple[tuple[Any, ...], dict[str, Any]]  # The positional arguments after D, and the keyword arguments.
    tensors: list[Tensor]  # Every tensor in ``arguments``, each once, in the order of first occurrence.
    detached: list[Tensor]  # ``tensors``, detached from their graphs.

    @classmethod
    def of(cls, batch: tuple[Any, ...], kwargs: dict[str, Any]) -> "Batch":
        """Collect the tensors of a batch, once for all steps that use it."""
        tensors = distinct(tensors_in(batch, kwargs))
        return cls((batch, kwargs), tensors, [t.detach() for t in tensors])

    def structure(self) -> Any:
        """Return all but the values of the tensors in hashable form; raise ValueError if an argument has none."""
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
    """Return whether a step is nothing but the network's gradient and rules in closed form, in at least 32 bits.

    A compiled rule has its numbers in the precision of its parameters, and in bfloat16 0.999 is 1.
    """
    plain = type(unroll.ranks) is OneProcess and not unroll.transforms
    return plain and all(isinstance(b.rule, ClosedRule) and b.params.itemsize > 2 for b in point.blocks)


class Functions:
    """A step and its pullback as functions of tensors only.

    All take the numbers of the rules, θ and the optimizer state, the buffers and the batch as ``primals``, and the
    cotangents of the new θ and state as ``tangents``.
    """

    def __init__(self, unroll: Unroll, start: Point, batch: Batch) -> None:
        self._unroll = replace(unroll, transforms=Transforms(), ranks=OneProcess())
        self._start = start
        self._batch = batch
        # For each tensor of the batch, whether ``both`` returns a cotangent; set when ``both`` runs.
        self.found: list[bool] = []

    def step(self, primals: Sequence[Tensor]) -> list[Tensor]:
        """Return the loss, the new θ and state, the buffers and, if a rule has made the new θ, the gradients."""
        _, following, step, _ = self._run(iter(primals), differentiable=False)
        return self._results(following, step)

    def both(self, primals: Sequence[Tensor], tangents: Sequence[Tensor]) -> list[Tensor]:
        """Return what ``step`` returns, the cotangents of θ and state, and of those tensors of the batch with one."""
        unroll, following, step, leaves = self._run(iter(primals), differentiable=True)
        rest = iter(tangents)
        bars = [each(b, lambda _: next(rest)) for b in self._start.blocks]
        found = unroll.pullback(step, regroup(bars, layout(following.blocks)), first=False)
        assert found is not None
        of_start = pairs(self._start.blocks, regroup(found, layout(self._start.blocks)))
        of_old = [torch.zeros_like(t) if bar is None else bar for t, bar in of_start]
        of = {id(t): bar for t, bar in unroll.sensitivity.pairs()}
        self.found = [id(leaf) in of for leaf in leaves]
        return [*self._results(following, step), *of_old, *(of[id(leaf)] for leaf in leaves if id(leaf) in of)]

    def _results(self, following: Point, step: Step) -> list[Tensor]:
        loss = step.evaluation.loss.detach().reshape(())
        blocks = regroup(following.blocks, layout(self._start.blocks))
        tensors = [loss, *(t for b in blocks for t in tensors_of(values_of(b))), *following.buffers]
        grads = () if blocks[0].rule is GRADIENT else step.grads
        return [t.detach() for t in (*tensors, *grads) if t is not None]

    def _run(self, rest: Iterator[Tensor], differentiable: bool) -> tuple[Unroll, Point, Step, list[Tensor]]:
        blocks = [b._replace(rule=_numbered(b, rest)) for b in self._start.blocks]
        blocks = [each(b, lambda _: next(rest)) for b in blocks]
        # With a block for each parameter, the compiler can fuse its update with the kernel that made its gradient.
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
    """A rule in closed form whose numbers are tensors, the inputs of a compiled function."""

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
    """Return a block whose tensors have been updated, with the numbers in its state updated too."""
    rule = block.rule
    assert isinstance(rule, ClosedRule)
    return block._replace(state=rule.following(block.state, tensors_of(block.state)))


class _Gradient(UpdateRule):
    """A rule that returns the gradient in place of the new parameter."""

    def with_pullback(self, param: Tensor, grad: Tensor, state: Any) -> tuple[Tensor, Any, Pullback]:  # noqa: ARG002
        """Return ``grad`` and the identity as its pullback; ``param`` is not used."""
        return grad, state, lambda bars, _: (bars[0], [None])  # pyright: ignore[reportReturnType]


GRADIENT = _Gradient()


def inputs_of(point: Point, batch: Batch) -> list[Tensor]:
    """Return the arguments of ``Functions.step``, in its order."""
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
