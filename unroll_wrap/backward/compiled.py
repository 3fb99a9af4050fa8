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

from ..arguments import mapped, tensors_in
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

    def program(self, unroll: Unroll, point: Point, batch: tuple[Any, ...], check: bool) -> "_Program | None":
        """The two functions for inputs such as these, checked on them or not; None if there are none."""
        kwargs = unroll.evaluate.kwargs
        modules = unroll.evaluate.swap.modules
        inputs = [*point.params(), *point.buffers, *tensors_in(batch, kwargs)]
        key = (
            unroll.d_loss,
            tuple((id(m), m.training) for m in modules),
            tuple((t.shape, t.stride(), t.dtype, t.device, t.requires_grad) for t in inputs),
            repr(mapped(lambda _: "tensor", (batch, kwargs))),
        )
        if key not in self._programs and len(self._programs) < _MOST:
            try:
                # Tracing runs the loss, which may draw.
                with RandomState(inputs).replayed():
                    made = _compile(unroll, point, batch)
                    if not made.differentiates(unroll, point, batch):
                        raise ValueError("its compiled derivatives are not its own")  # noqa: TRY301, reported below
                    self._programs[key] = made
            except Exception as error:  # noqa: BLE001, a compiler's errors have no common type; all are reported
                self._give_up(key, f"{type(error).__name__}: {error}")
        elif key not in self._programs:
            self._give_up(None, f"it is the {_MOST + 1}th kind of loss or batch. Pass d_loss once, at construction")
        program = self._programs.get(key)
        if check and program is not None and not program.reproduces(unroll, point, batch):
            self._give_up(key, "its value is no longer that of its first call. Pass what changes as an argument")
        return self._programs.get(key)

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
        adjoint: (θ, buffers, batch, ḡ) → (θ̄, batch's).
        used: which parameters have a gradient.
        found: which results of the adjoint there are.
    """

    gradient: Callable[..., Sequence[Tensor]]
    adjoint: Callable[..., Sequence[Tensor]]
    used: list[bool]
    found: list[bool]

    def reproduces(self, unroll: Unroll, point: Point, batch: tuple[Any, ...]) -> bool:
        """Whether the compiled loss is the loss."""
        evaluation = unroll.evaluate("d_loss", unroll.d_loss, point.params(), point.buffers, batch, walk=False)
        expected = evaluation.loss.detach()
        with torch.no_grad():
            loss = self.gradient(*_inputs(unroll, point, batch))[0]
        return bool((loss - expected.reshape(())).abs() <= _tolerance(loss) * (1 + expected.abs().reshape(())))

    def differentiates(self, unroll: Unroll, point: Point, batch: tuple[Any, ...]) -> bool:
        """Whether both functions give what autograd gives, with the gradient itself for ḡ."""
        evaluation = unroll.evaluate("d_loss", unroll.d_loss, point.params(), point.buffers, batch, walk=False)
        grads = [g for g in unroll.gradients(evaluation, create_graph=True)[0] if g is not None]
        bars, inputs = [g.detach() for g in grads], _inputs(unroll, point, batch)
        curved = [(g, bar) for g, bar in zip(grads, bars, strict=True) if g.requires_grad]
        leaves = [*evaluation.params, *evaluation.outer]
        products = differentiate("d_loss", [g for g, _ in curved], leaves, [bar for _, bar in curved])
        with torch.no_grad():
            found = [*self.gradient(*inputs)[1 : 1 + len(bars)], *self.adjoint(*inputs, *bars)]
        expected = [*bars, *(p for p in products if p is not None)]
        return len(found) == len(expected) and all(
            (one - other).norm() <= _tolerance(one) * (1 + other.norm())
            for one, other in zip(found, expected, strict=True)
        )


def _tolerance(like: Tensor) -> float:
    return 100 * torch.finfo(like.dtype).eps ** 0.75


def _inputs(unroll: Unroll, point: Point, batch: tuple[Any, ...]) -> list[Tensor]:
    return [*point.params(), *point.buffers, *(t.detach() for t in tensors_in(batch, unroll.evaluate.kwargs))]


def _compile(unroll: Unroll, point: Point, batch: tuple[Any, ...]) -> _Program:
    """Trace the step's two functions of plain tensors, and compile them.

    Raises:
        ValueError: the loss depends on more than its arguments.
    """
    kwargs = unroll.evaluate.kwargs
    of_batch = tensors_in(batch, kwargs)
    n, m = len(point.params()), len(point.buffers)
    used: list[bool] = []
    found: list[bool] = []

    def evaluation(tensors: Sequence[Tensor]) -> Any:
        params, buffers, rest = tensors[:n], tensors[n : n + m], iter(tensors[n + m :])
        flags = iter([t.requires_grad for t in of_batch])
        own, named = mapped(lambda _: next(rest).detach().requires_grad_(next(flags)), (batch, kwargs))
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
        result = evaluation(tensors[: n + m + len(of_batch)])
        grads, _ = unroll.gradients(result, create_graph=True)
        outputs = [
            (g, bar) for g, bar in zip((g for g in grads if g is not None), bars, strict=True) if g.requires_grad
        ]
        inner = differentiate(
            "d_loss", [g for g, _ in outputs], [*result.params, *result.arguments.leaves], [bar for _, bar in outputs]
        )
        found[:] = [g is not None for g in inner]
        return [g for g in inner if g is not None]

    inputs = _inputs(unroll, point, batch)
    with torch.enable_grad():
        traced = _trace(gradient, inputs)
        bars = [torch.zeros_like(p) for p, u in zip(point.params(), used, strict=True) if u]
        of_bars = _trace(adjoint, [*inputs, *bars])
    with torch.no_grad():
        return _Program(
            torch._inductor.compile(traced, inputs),  # pyright: ignore[reportArgumentType]
            torch._inductor.compile(of_bars, [*inputs, *bars]),  # pyright: ignore[reportArgumentType]
            list(used),
            list(found),
        )


def _trace(function: Callable[..., list[Tensor]], inputs: list[Tensor]) -> GraphModule:
    traced = make_fx(function, decomposition_table=_DECOMPOSITIONS)(*inputs)
    for node in traced.graph.nodes:
        if node.op == "get_attr" and not all("lift_fresh" in str(user.target) for user in node.users):
            raise ValueError("it captures a tensor. Pass every tensor that it uses as an argument")
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise ValueError(f"it draws random numbers, in {node.target}")
    return traced


def _mm(a: Tensor, b: Tensor) -> Tensor:
    """A product with a dimension of at most 4, as products and sums: these are fused, calls of mm never are."""
    (rows, inner), columns = a.shape, b.shape[1]
    if inner <= 4:
        return sum((a[:, i : i + 1] * b[i : i + 1] for i in range(1, inner)), a[:, :1] * b[:1])
    if columns <= 4:
        return torch.stack([(a * b[:, j]).sum(1) for j in range(columns)], 1)
    if rows <= 4:
        return torch.stack([(a[i].unsqueeze(1) * b).sum(0) for i in range(rows)])
    return NotImplemented


def _addmm(bias: Tensor, a: Tensor, b: Tensor, beta: float = 1, alpha: float = 1) -> Tensor:
    product = _mm(a, b)
    return product if product is NotImplemented else beta * bias + alpha * product


_DECOMPOSITIONS = {torch.ops.aten.mm.default: _mm, torch.ops.aten.addmm.default: _addmm}


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
        self._program: _Program | None = None

    def step(self, point: Point, k: int) -> Point:
        unroll = self._unroll
        batch = unroll.inner_batch(k)
        if batch is not self._batch:
            self._program = self._settings.program(unroll, point, batch, check=k == self.first)
            self._batch = batch
        program = self._program
        if program is None:
            point, step = unroll.step(point, k, batch, differentiable=True)
            self._taken.append(step)
            return point
        if k == self.first:
            point = Point([self._settings.rule_of(b) for b in point.blocks], point.buffers)
        inputs = _inputs(unroll, point, batch)
        with torch.no_grad():
            loss, *rest = program.gradient(*inputs)
        unroll.d_losses.append(loss)
        gradients = iter(rest)
        grads = [next(gradients) if u else None for u in program.used]
        grads = unroll.ranks.gradients(grads, batch) or grads
        update = unroll.update(point, grads, differentiable=True)
        users = [t for t in tensors_in(batch, unroll.evaluate.kwargs) if t.requires_grad]
        self._taken.append(_Taken(program, inputs, users, grads, update))
        return Point(update.following(), tuple(gradients))

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
        with torch.no_grad():
            products = iter(taken.program.adjoint(*taken.inputs, *present))
        found = [next(products) if f else None for f in taken.program.found]
        n = len(taken.grads)
        unroll.sensitivity.second_term |= unroll.sensitivity.add(taken.users, found[n:])
        return None if first else taken.update.cotangent(of_old, found[:n])
