"""Two compiled functions, the network's gradient and its adjoint, called K times each.

The whole unrolled call as one graph compiles for minutes and runs slower than eager; autograd through one compiled
step keeps what its kernels were fused to avoid. So each step is compiled once, whatever K, as two functions without
autograd: θ → g, and (θ, ḡ) → ((∂g/∂θ)ᵀḡ, (∂g/∂fake)ᵀḡ), which computes the step again.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from ..arguments import distinct, mapped, tensors_in
from ..evaluate import differentiate
from ..replay import RandomState
from ..rules.block import Block
from ..rules.closed import ClosedRule
from ..rules.update import Update
from ..unroll import Point, Step, Unroll
from .compiled_rule import CompiledRule, Kernels, compile_rule, kind
from .sweep import Tape

logger = logging.getLogger("unroll_wrap")

# Of programs for one loss: batches of ever new shapes, or a new lambda in every call, would compile for ever.
_MOST = 8


@dataclass(frozen=True)
class Compiled:
    """For small nets, whose time goes into the calls of operators rather than into the operators: several times faster.

    The loss is traced: its Python runs once, and what it reads besides its arguments counts as constant. A loss that
    draws random numbers, branches on data, captures tensors or reaches a generator cannot be compiled; it is then run
    by ``Store()``, with one notice in the logger ``unroll_wrap``. Every call checks the compiled loss of its first step
    against the loss itself.

    The first call takes ten seconds to two minutes, more where D has convolutions. Memory is that of ``Recompute()``.
    """

    twice = True
    _programs: "dict[Any, _Program | None]" = field(default_factory=dict, init=False, repr=False, compare=False)
    _kernels: dict[Any, Kernels] = field(default_factory=dict, init=False, repr=False, compare=False)

    def tape(self, unroll: Unroll, first: int, steps: int) -> Tape:
        """A stack of points."""
        return _Stack(unroll, first, self)

    def program(self, unroll: Unroll, point: Point, batch: tuple[Any, ...]) -> "_Program | None":
        """The functions for inputs such as these; None if there are none."""
        key = self._key(unroll, point, batch)
        if key not in self._programs and len(self._programs) < _MOST:
            try:
                # Tracing runs the loss, which may draw.
                with RandomState(unroll.evaluate.owned).replayed():
                    made = _compile(unroll, point, batch)
                    if not made.differentiates(unroll, point, batch):
                        raise ValueError("its compiled derivatives are not its own")  # noqa: TRY301, reported below
                    self._programs[key] = made
            except Exception as error:  # noqa: BLE001, a compiler's errors have no common type; all are reported
                self._give_up(key, f"{type(error).__name__}: {error}")
        elif key not in self._programs:
            self._give_up(None, f"it is the {_MOST + 1}th kind of loss or batch. Pass d_loss once, at construction")
        return self._programs.get(key)

    def _key(self, unroll: Unroll, point: Point, batch: tuple[Any, ...]) -> Any:
        """Inputs of one key have the same program."""
        arguments, modules = (batch, unroll.evaluate.kwargs), unroll.evaluate.swap.modules
        given = distinct(tensors_in(arguments))
        inputs, place = [*point.params(), *point.buffers, *given], {id(t): i for i, t in enumerate(given)}
        return (
            unroll.d_loss,
            unroll.evaluate.second_order,
            tuple((id(m), m.training) for m in modules),
            tuple((t.shape, t.stride(), t.dtype, t.device, t.requires_grad) for t in inputs),
            repr(mapped(lambda t: place[id(t)], arguments)),
        )

    def check(self, unroll: Unroll, point: Point, batch: tuple[Any, ...], loss: Tensor) -> bool:
        """Whether the compiled loss is still the loss; else it is given up."""
        evaluation = unroll.evaluate("d_loss", unroll.d_loss, point.params(), point.buffers, batch, walk=False)
        expected = evaluation.loss.detach().reshape(())
        right = bool((loss - expected).abs() <= _tolerance(loss) * (1 + expected.abs()))
        if not right:
            reason = "its value is no longer that of its first call. Pass what changes as an argument"
            self._give_up(self._key(unroll, point, batch), reason)
        return right

    def rule_of(self, block: Block) -> Block:
        """The block, its rule compiled where it can be."""
        rule = block.rule
        if not isinstance(rule, ClosedRule):
            return block
        key = kind(rule, block)
        if key not in self._kernels:
            self._kernels[key] = compile_rule(rule, block)
        return block._replace(rule=CompiledRule(rule, self._kernels[key]))

    def _give_up(self, key: Any, reason: str) -> None:
        """Run this loss by ``Store()`` from now on, and say so once."""
        if self._programs.get(key, "unknown") is not None:
            logger.warning("d_loss is not compiled but run as it is: %.500s", reason)
        self._programs[key] = None


class _Program(NamedTuple):
    """The compiled functions of tensors, and which entries of their results there are.

    Attributes:
        gradient: (θ, buffers, batch) → (loss, g, buffers).
        adjoint: (θ, buffers, batch, ḡ) → (θ̄, batch's); None where only the first term is asked for.
        used: which parameters have a gradient.
        found: which results of the adjoint there are.
    """

    gradient: Callable[..., Sequence[Tensor]]
    adjoint: Callable[..., Sequence[Tensor]] | None
    used: list[bool]
    found: list[bool]

    def differentiates(self, unroll: Unroll, point: Point, batch: tuple[Any, ...]) -> bool:
        """Whether the functions give what autograd gives, with the gradient itself for ḡ."""
        evaluation = unroll.evaluate("d_loss", unroll.d_loss, point.params(), point.buffers, batch, walk=False)
        grads = [g for g in unroll.gradients(evaluation, create_graph=self.adjoint is not None)[0] if g is not None]
        bars, given = [g.detach() for g in grads], distinct(tensors_in(batch, unroll.evaluate.kwargs))
        inputs = _inputs(point, given)
        curved = [(g, bar) for g, bar in zip(grads, bars, strict=True) if g.requires_grad]
        leaves = [*evaluation.params, *evaluation.outer]
        products = differentiate("d_loss", [g for g, _ in curved], leaves, [bar for _, bar in curved])
        with torch.no_grad():
            found = [*self.gradient(*inputs)[1 : 1 + len(bars)]]
            if self.adjoint:
                found += self.adjoint(*inputs, *bars)
        expected = [*bars, *(p for p in products if p is not None)]
        return len(found) == len(expected) and all(
            (one - other).norm() <= _tolerance(one) * (1 + other.norm())
            for one, other in zip(found, expected, strict=True)
        )


def _tolerance(like: Tensor) -> float:
    return 100 * torch.finfo(like.dtype).eps ** 0.75


def _inputs(point: Point, given: Sequence[Tensor]) -> list[Tensor]:
    """What the functions are called with: θ, the buffers, and the tensors of a batch."""
    return [*point.params(), *point.buffers, *(t.detach() for t in given)]


def _compile(unroll: Unroll, point: Point, batch: tuple[Any, ...]) -> _Program:
    """Trace the step's functions of plain tensors, and compile them.

    Raises:
        ValueError: the loss depends on more than its arguments.
    """
    arguments = (batch, unroll.evaluate.kwargs)
    of_batch = distinct(tensors_in(arguments))
    n, m = len(point.params()), len(point.buffers)
    used: list[bool] = []
    found: list[bool] = []

    def evaluation(tensors: Sequence[Tensor]) -> Any:
        params, buffers = tensors[:n], tensors[n : n + m]
        leaf_of = {
            id(t): leaf.detach().requires_grad_(t.requires_grad)
            for t, leaf in zip(of_batch, tensors[n + m : n + m + len(of_batch)], strict=True)
        }
        own, named = mapped(lambda t: leaf_of[id(t)], arguments)
        # A plain leaf, made by an operator: one made without is a constant to the tracer.
        evaluator = replace(unroll.evaluate, kwargs=named, leaf=lambda p: p.detach().requires_grad_())
        result = evaluator("d_loss", unroll.d_loss, params, buffers, own)
        if result.captured:
            raise ValueError("it reaches a generator. Pass fake as an argument")
        return result

    def gradient(*tensors: Tensor) -> list[Tensor]:
        result = evaluation(tensors)
        grads, _ = unroll.gradients(result)
        used[:] = [g is not None for g in grads]
        buffers = unroll.evaluate.swap.buffers()
        return [result.loss.detach().reshape(()), *(g for g in grads if g is not None), *buffers]

    def adjoint(*tensors: Tensor) -> list[Tensor]:
        bars = tensors[n + m + len(of_batch) :]
        result = evaluation(tensors)
        grads, _ = unroll.gradients(result, create_graph=True)
        outputs = [
            (g, bar) for g, bar in zip((g for g in grads if g is not None), bars, strict=True) if g.requires_grad
        ]
        inner = differentiate(
            "d_loss", [g for g, _ in outputs], [*result.params, *result.arguments.leaves], [bar for _, bar in outputs]
        )
        found[:] = [g is not None for g in inner]
        return [g for g in inner if g is not None]

    inputs = _inputs(point, of_batch)
    forwards = _compiled(gradient, inputs)
    backwards = None
    if unroll.evaluate.second_order:
        bars = [torch.zeros_like(p) for p, u in zip(point.params(), used, strict=True) if u]
        backwards = _compiled(adjoint, [*inputs, *bars])
    return _Program(forwards, backwards, used, found)


def _compiled(function: Callable[..., list[Tensor]], inputs: list[Tensor]) -> Callable[..., Sequence[Tensor]]:
    with torch.enable_grad():
        traced = _trace(function, inputs)
    with torch.no_grad():
        return torch._inductor.compile(traced, inputs)  # pyright: ignore[reportArgumentType, reportReturnType]


def _trace(function: Callable[..., list[Tensor]], inputs: list[Tensor]) -> GraphModule:
    traced = make_fx(function, decomposition_table=_DECOMPOSITIONS)(*inputs)
    for node in traced.graph.nodes:
        if node.op == "get_attr" and not all("lift_fresh" in str(user.target) for user in node.users):
            raise ValueError("it captures a tensor. Pass every tensor that it uses as an argument")
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise ValueError(f"it draws random numbers, in {node.target}")
    return traced


def _mm(a: Tensor, b: Tensor) -> Tensor:
    """A product with a dimension of at most 4, as products and sums: these are fused, calls of mm and bmm never are."""
    rows, inner, columns = *a.shape[-2:], b.shape[-1]
    if inner <= 4:
        terms = [a[..., i : i + 1] * b[..., i : i + 1, :] for i in range(inner)]
        return sum(terms[1:], terms[0])
    if columns <= 4:
        return torch.stack([(a * b[..., None, :, j]).sum(-1) for j in range(columns)], -1)
    if rows <= 4:
        return torch.stack([(a[..., i, :, None] * b).sum(-2) for i in range(rows)], -2)
    return NotImplemented


def _addmm(bias: Tensor, a: Tensor, b: Tensor, beta: float = 1, alpha: float = 1) -> Tensor:
    product = _mm(a, b)
    return product if product is NotImplemented else beta * bias + alpha * product


_aten = torch.ops.aten
_DECOMPOSITIONS = {
    _aten.mm.default: _mm,
    _aten.bmm.default: _mm,
    _aten.addmm.default: _addmm,
    _aten.baddbmm.default: _addmm,
}


class _Taken(NamedTuple):
    """A step: what its program is called with, the gradients, and the update with its graph back to them."""

    program: _Program
    inputs: list[Tensor]
    users: list[Tensor]
    grads: list[Tensor | None]
    update: Update


class _Stack:
    def __init__(self, unroll: Unroll, first: int, settings: Compiled) -> None:
        self._unroll = unroll
        self.first = first
        self._settings = settings
        self._taken: list[_Taken | Step] = []
        self._batch: tuple[Any, ...] | None = None
        self._given: list[Tensor] = []
        self._program: _Program | None = None

    def step(self, point: Point, k: int) -> Point:
        unroll, keep = self._unroll, k >= self.first
        batch = unroll.inner_batch(k)
        if batch is not self._batch:
            self._batch, self._given = batch, distinct(tensors_in(batch, unroll.evaluate.kwargs))
            self._program = self._settings.program(unroll, point, batch)
        found = self._by_program(self._program, point, k, batch) if self._program else None
        if found is None:
            self._program = None
            found = unroll.step(point, k, batch, differentiable=keep)
        point, taken = found
        if keep:
            self._taken.append(taken)
        return point

    def _by_program(
        self, program: _Program, point: Point, k: int, batch: tuple[Any, ...]
    ) -> tuple[Point, _Taken] | None:
        """The compiled step; None where the loss is no longer what was compiled."""
        unroll = self._unroll
        inputs = _inputs(point, self._given)
        with torch.no_grad():
            loss, *rest = program.gradient(*inputs)
        if k == 0:
            if not self._settings.check(unroll, point, batch, loss):
                return None
            point = point._replace(blocks=[self._settings.rule_of(b) for b in point.blocks])
        unroll.d_losses.append(loss)
        gradients = iter(rest)
        grads = [next(gradients) if u else None for u in program.used]
        grads = unroll.ranks.gradients(grads, batch) or grads
        update = unroll.update(point, grads, differentiable=k >= self.first)
        users = [t for t in self._given if t.requires_grad]
        return Point(update.following(), tuple(gradients)), _Taken(program, inputs, users, grads, update)

    def pullback(self, k: int, cotangent: list[Block]) -> list[Block] | None:
        unroll, taken, first = self._unroll, self._taken.pop(), k == self.first
        if isinstance(taken, Step):
            return unroll.pullback(taken, cotangent, first)
        bars, of_old = taken.update.pullback(cotangent)
        present = [
            torch.zeros_like(g) if bar is None else bar
            for g, bar, used in zip(taken.grads, bars, taken.program.used, strict=True)
            if used and g is not None
        ]
        adjoint = taken.program.adjoint
        assert adjoint is not None  # compiled for every call that differentiates a step
        with torch.no_grad():
            products = iter(adjoint(*taken.inputs, *present))
        found = [next(products) if f else None for f in taken.program.found]
        n = len(taken.grads)
        unroll.sensitivity.second_term |= unroll.sensitivity.add(taken.users, found[n:])
        return None if first else taken.update.cotangent(of_old, found[:n])
