"""K optimizer steps of the discriminator, each from fresh leaves, each with its pullback.

Forwards, one step is two maps: the network's gradient g = ∂d_loss/∂θ, then the optimizer's rule
(θ, g, state) → (θ', state'). Backwards, with λ the cotangent of (θ', state'): the rule's pullback gives ḡ and the
direct parts, and one second-order pass gives (∂g/∂θ)ᵀḡ and (∂g/∂fake)ᵀḡ.

Fresh leaves, because a θ^k that stays attached to the graph is also differentiated by the user's own code: a penalty
``autograd.grad(D(x).sum(), x)`` on a batch used in an earlier step would see D's parameters depend on x.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .evaluate import NO_SECOND_DERIVATIVE, Evaluation, Evaluator, differentiate
from .operators import parameters_only, repair
from .ranks import Grads, OneProcess
from .rules.block import Block, unpack
from .rules.update import GradTransform, ParamTransform, Update, add, update, zero_cotangent
from .swap import UnrolledParameter


class Point(NamedTuple):
    """Where the inner optimization stands: θ^k with the optimizer's state, and D's buffers."""

    blocks: list[Block]
    buffers: tuple[Tensor, ...]

    def params(self) -> list[Tensor]:
        """θ^k, parameter by parameter."""
        found: dict[int, Tensor] = {}
        for block in self.blocks:
            found.update(zip(block.index, unpack(block.params, block.shapes), strict=True))
        return [found[i] for i in range(len(found))]


class Step(NamedTuple):
    """One inner step: from the leaves of ``evaluation`` to the gradients, with their graph, and to ``update.new``.

    Attributes:
        start: θ^k.
        evaluation: of ``d_loss``.
        grads: of it, with their graph.
        averages: the gradients that the update went by, where they are those of several ranks.
        update: to θ^{k+1}.
    """

    start: Point
    evaluation: Evaluation
    grads: Grads
    averages: Grads | None
    update: Update


class Sensitivity:
    """The derivative of the result with respect to what is the user's, gathered by the reverse sweep.

    Attributes:
        surrogates: scalars whose own gradient is a part of it, for graphs made before the call.
        edge: the nodes that hand it over to these graphs.
        first_term: whether ``g_loss`` depends on anything outside D.
        second_term: whether ``d_loss`` does, in a way that matters to ``g_loss``.
        through_d: whether ``g_loss`` depends on what moves in D.
    """

    def __init__(self) -> None:
        self.surrogates: list[Tensor] = []
        self.edge: list[Any] = []
        self.first_term = self.second_term = self.through_d = False
        self._sums: dict[int, tuple[Tensor, Tensor]] = {}

    def add(self, users: Sequence[Tensor], grads: Sequence[Tensor | None]) -> bool:
        """Add the gradients of tensors of the user's.

        Returns:
            Whether any of them is more than a leaf of the loss's own, such as a gradient penalty makes.
        """
        reached = False
        for tensor, grad in zip(users, grads, strict=True):
            if grad is not None:
                reached |= tensor.grad_fn is not None or isinstance(tensor, nn.Parameter) or id(tensor) in self._sums
                so_far = self._sums.get(id(tensor))
                self._sums[id(tensor)] = tensor, grad if so_far is None else so_far[1] + grad
        return reached

    def tensors(self) -> list[Tensor]:
        """All that the gradient is made of."""
        return [*(g for _, g in self._sums.values()), *self.surrogates]

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Tensors of the user's with the gradient of each."""
        return iter(self._sums.values())


@dataclass
class Unroll:
    """One call: losses, batches and transforms, and what the sweep has found so far.

    Attributes:
        evaluate: runs a loss with given tensors in D.
        d_loss: ``(D, *batch, **kwargs) -> scalar``.
        g_loss: the same.
        inner_batch: ``k -> batch`` for inner step k.
        batch: the call's own, for ``g_loss``.
        grad_transform: before the rule, see ``rules.update``.
        param_transform: after the rule.
        differentiate: whether the caller wants a gradient at all.
        stop_gradient: whether it is to be the first term of Eq. 12 alone.
        ranks: whom gradients are averaged with.
        d_losses: of the inner steps so far, without graph.
        sensitivity: what the sweep has found so far.
    """

    evaluate: Evaluator
    d_loss: Callable[..., Tensor]
    g_loss: Callable[..., Tensor]
    inner_batch: Callable[[int], tuple[Any, ...]]
    batch: tuple[Any, ...]
    grad_transform: GradTransform | None
    param_transform: ParamTransform | None
    differentiate: bool
    stop_gradient: bool
    ranks: OneProcess = field(default_factory=OneProcess)
    d_losses: list[Tensor] = field(default_factory=list)
    sensitivity: Sensitivity = field(default_factory=Sensitivity)

    def step(
        self, point: Point, k: int, batch: tuple[Any, ...], differentiable: bool, averages: Grads | None = None
    ) -> tuple[Point, Step]:
        """θ^k → θ^{k+1}; if ``differentiable``, the step keeps what its pullback needs.

        Args:
            point: θ^k.
            k: its number.
            batch: of this step.
            differentiable: keep the graph.
            averages: the gradients that a replayed step went by, where they are those of several ranks.

        Raises:
            RuntimeError: the loss has no second derivative.
        """
        # Without a pullback the ends of the graph matter for the check on the first step alone.
        evaluation = self.evaluate_d(point, k, batch, walk=differentiable or k == 0)
        if differentiable and evaluation.once:
            raise RuntimeError(
                f"Differentiating {evaluation.name}: {NO_SECOND_DERIVATIVE}. It is {evaluation.once[0]}."
            )
        grads, _ = self.gradients(evaluation, create_graph=differentiable)
        averages = averages or self.ranks.gradients(grads, batch)
        update = self.update(point, averages or grads, differentiable)
        return Point(update.following(), self.evaluate.swap.buffers()), Step(point, evaluation, grads, averages, update)

    def afresh(self) -> "Unroll":
        """The same call, nothing of it done, for one process alone."""
        return replace(self, ranks=OneProcess(), d_losses=[], sensitivity=Sensitivity())

    def advance(self, point: Point, k: int) -> Point:
        """θ^k → θ^{k+1} on the step's own batch, never to be differentiated."""
        return self.step(point, k, self.inner_batch(k), differentiable=False)[0]

    def evaluate_d(
        self, point: Point, k: int, batch: tuple[Any, ...], params: Sequence[Tensor] | None = None, walk: bool = True
    ) -> Evaluation:
        """``d_loss`` of inner step k, at the point's parameters or others."""
        params = point.params() if params is None else params
        evaluation = self.evaluate(f"d_loss at inner step {k}", self.d_loss, params, point.buffers, batch, walk)
        if k == len(self.d_losses):
            self.d_losses.append(evaluation.loss.detach())
        return evaluation

    def gradients(
        self, evaluation: Evaluation, also: Sequence[Tensor] = (), **options: Any
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """What the optimizer would find in ``.grad`` of each parameter, and the gradients of other leaves."""
        name, loss, params = evaluation.name, evaluation.loss, evaluation.params
        if not loss.requires_grad:
            raise ValueError(f"{name} depends on no parameter. Compute it from D's output, without detach or no_grad.")
        # The operators tell parameters by their class, which a tracer's leaves do not have.
        skip = not also and all(type(p) is UnrolledParameter for p in params)
        hooks = [*evaluation.hooks, *(repair(evaluation.fragile) if options.get("create_graph") else [])]
        with parameters_only() if skip else nullcontext():
            found = differentiate(name, [loss], [*params, *also], factor=self.evaluate.autocast.first, **options)
        # They belong to this pass: what differentiates it may come by the same nodes.
        for hook in hooks:
            hook.remove()
        grads = found[: len(params)]
        if all(g is None for g in grads):
            raise ValueError(
                f"{name} reaches none of the {len(grads)} parameters that the optimizer moves. Pass the discriminator "
                "that the loss uses, and the optimizer that steps it; and let the loss call D itself, not return what "
                "was computed before."
            )
        if any(g is not None and g.is_sparse for g in grads):
            raise ValueError(
                f"{name} has a sparse gradient, of an nn.Embedding(sparse=True) as it seems, which cannot be "
                "differentiated again. Leave sparse=True out."
            )
        # A hook on the live parameter is a part of what its optimizer sees.
        for i, hook in self.evaluate.hooks:
            if (g := grads[i]) is not None:
                changed = hook(g)
                grads[i] = g if changed is None else changed
        return grads, found[len(params) :]

    def update(self, point: Point, grads: Sequence[Tensor | None], differentiable: bool) -> Update:
        """The optimizer's part of a step."""
        return update(point.blocks, grads, self.grad_transform, self.param_transform, differentiable)

    def pullback(self, step: Step, cotangent: list[Block], first: bool) -> list[Block] | None:
        """From the cotangent of a step's result to that of its start; adds to ``sensitivity`` on the way.

        For the ``first`` step of all there is no cotangent to return: nobody moves the live discriminator.
        """
        evaluation = step.evaluation
        bars, of_old = step.update.pullback(cotangent)
        pairs = [
            (g, bar)
            for g, bar in zip(step.grads, bars, strict=True)
            if g is not None and bar is not None and g.requires_grad
        ]
        inner = [] if first else evaluation.params
        # Whatever recomputes a part of D's forward pass during the backward one must find this step's tensors there.
        self.evaluate.swap.put(evaluation.params, step.start.buffers)
        found = differentiate(
            evaluation.name,
            [g for g, _ in pairs],
            [*inner, *evaluation.outer],
            [bar for _, bar in pairs],
            factor=self.evaluate.autocast.second,
            retain_graph=evaluation.captured or bool(evaluation.outside),
        )
        reached = self.sensitivity.add(evaluation.users, found[len(inner) :])
        self.sensitivity.second_term |= reached or evaluation.captured
        if evaluation.captured and pairs:
            where = pairs[0][0].device
            self.sensitivity.surrogates.append(torch.stack([(g * bar).sum().to(where) for g, bar in pairs]).sum())
            self.sensitivity.edge += self.evaluate.edge(evaluation)
        return None if first else step.update.cotangent(of_old, found[: len(inner)])

    def generator_term(self, point: Point, weight: float) -> tuple[Tensor, list[Block]]:
        """``weight`` times ``g_loss`` at a point, and the cotangent of the point's tensors."""
        evaluation = self.evaluate("g_loss", self.g_loss, point.params(), point.buffers, self.batch)
        value = evaluation.loss * weight if weight != 1 else evaluation.loss
        cotangent = zero_cotangent(point.blocks)
        if not (self.differentiate and value.requires_grad):
            return value.detach(), cotangent
        params = [] if self.stop_gradient else evaluation.params
        keep = evaluation.captured or bool(evaluation.outside)
        factor = self.evaluate.autocast.first
        found = differentiate("g_loss", [value], [*params, *evaluation.outer], factor=factor, retain_graph=keep)
        n = len(params)
        self.sensitivity.add(evaluation.users, found[n:])
        self.sensitivity.through_d |= any(g is not None for g in found[:n])
        self.sensitivity.first_term |= any(g is not None for g in found[n:]) or evaluation.captured
        if evaluation.captured:
            self.sensitivity.surrogates.append(value)
        return value.detach(), add(cotangent, found[:n]) if params else cotangent
