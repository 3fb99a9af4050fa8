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

from ..call.batch import tensors_in
from ..evaluation.evaluate import NO_SECOND_DERIVATIVE, Evaluation, Evaluator, causes, differentiate
from ..evaluation.graph import reach
from ..live.random_state import undisturbed
from ..operators import Adjoint, adjoint, parameters_only, repair
from ..optimizers.block import Block, Joined
from ..optimizers.transforms import Transforms
from ..optimizers.update import Update, add, check_left, params_of, update, zero_cotangent
from .ranks import Grads, OneProcess


class Point(NamedTuple):
    """Where the inner optimization stands: θ^k with the optimizer's state, and D's buffers."""

    blocks: list[Block]
    buffers: tuple[Tensor, ...]
    contents: Any = None

    def params(self) -> list[Tensor]:
        """θ^k, parameter by parameter."""
        return params_of(self.blocks)


class Step(NamedTuple):
    """One inner step: from the leaves of ``evaluation`` to the gradients, with their graph, and to ``update.new``.

    Attributes:
        start: θ^k.
        evaluation: of ``d_loss``.
        grads: of it, with their graph.
        averages: the gradients that the update went by, where they are those of several ranks.
        update: to θ^{k+1}.
        adjoint: what differentiates the gradients, where their graph is not needed for that.
    """

    start: Point
    evaluation: Evaluation
    grads: Grads
    averages: Grads | None
    update: Update
    adjoint: Adjoint | None = None


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

    def through(self, surrogate: Tensor, evaluation: Evaluation) -> None:
        """Add what a scalar depends on by graphs made before the call.

        The user's backward pass goes through them later, and leaves gradients wherever they end. If that is D as well,
        which is not to have any, the ends that are meant get theirs now.
        """
        if not evaluation.stale:
            self.surrogates.append(surrogate)
        elif ends := [t for t in evaluation.behind if t.requires_grad]:
            self.add(ends, torch.autograd.grad(surrogate, ends, allow_unused=True, retain_graph=True))

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
        inner_batch: ``k -> batch`` for inner step k; None for ``batch`` in all of them.
        batch: the call's own, for ``g_loss``.
        transforms: of gradients before the rule, and of parameters after it.
        differentiate: whether the caller wants a gradient at all.
        stop_gradient: whether it is to be the first term of Eq. 12 alone.
        ranks: whom gradients are averaged with.
        proof: is told of every loss before it runs, if this call is to be compared with real steps.
        d_losses: of the inner steps so far, without graph.
        moved: positions of the parameters that ``d_loss`` has not frozen in some step so far.
        sensitivity: what the sweep has found so far.
    """

    evaluate: Evaluator
    d_loss: Callable[..., Tensor]
    g_loss: Callable[..., Tensor]
    inner_batch: Callable[[int], tuple[Any, ...]] | None
    batch: tuple[Any, ...]
    transforms: Transforms
    differentiate: bool
    stop_gradient: bool
    ranks: OneProcess = field(default_factory=OneProcess)
    proof: Any = None
    d_losses: list[Tensor] = field(default_factory=list)
    moved: set[int] = field(default_factory=set)
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
        by = None
        if differentiable and evaluation.nodes is not None:
            by = adjoint(
                evaluation.loss,
                *evaluation.nodes,
                self.evaluate.swap.handles(evaluation.params),
                evaluation.arguments.leaves,
            )
        grads, _ = self.gradients(evaluation, by=by, create_graph=differentiable)
        averages = averages or self.ranks.gradients(grads, batch)
        update, following = self.update(point, averages or grads, differentiable)
        return following, Step(point, evaluation, grads, averages, update, by)

    def afresh(self) -> "Unroll":
        """The same call, nothing of it done, for one process alone."""
        return replace(self, ranks=OneProcess(), proof=None, d_losses=[], moved=set(), sensitivity=Sensitivity())

    def advance(self, point: Point, k: int) -> Point:
        """θ^k → θ^{k+1} on the step's own batch, never to be differentiated."""
        return self.step(*self.draw(point, k), differentiable=False)[0]

    def draw(self, point: Point, k: int) -> tuple[Point, int, tuple[Any, ...]]:
        """The batch of inner step k, drawn while D is at θ^k; and the point, whose buffers drawing may move.

        Raises:
            ValueError: the batch depends on θ^k by a graph, which a step cannot differentiate.
        """
        if self.inner_batch is None:
            self._note(self.batch)
            return point, k, self.batch
        swap = self.evaluate.swap
        self.evaluate.put([p.data.requires_grad_() for p in point.params()], point.buffers, point.contents)
        batch = self.inner_batch(k)
        made = [t for t in tensors_in(batch) if t.grad_fn is not None]
        own = {id(p) for p in self.evaluate.owned}
        if any(id(leaf) in own for t in made for leaf in reach(t, set(), 0).leaves):
            raise ValueError(
                f"The batch that resample gave for inner step {k} has a graph that leads to D's parameters. Detach "
                "what D returns there, or compute it inside d_loss."
            )
        self._note(batch)
        return point._replace(buffers=swap.buffers(), contents=swap.contents()), k, batch

    def _note(self, batch: tuple[Any, ...] | None = None) -> None:
        if self.proof:
            self.proof.note(batch)

    def evaluate_d(
        self, point: Point, k: int, batch: tuple[Any, ...], params: Sequence[Tensor] | None = None, walk: bool = True
    ) -> Evaluation:
        """``d_loss`` of inner step k, at the point's parameters or others."""
        params = point.params() if params is None else params
        name = f"d_loss at inner step {k}"
        evaluation = self.evaluate(name, self.d_loss, params, point.buffers, batch, walk, point.contents)
        if k == len(self.d_losses):
            self.d_losses.append(evaluation.loss.detach())
            self._check_frozen(evaluation)
        return evaluation

    def _check_frozen(self, evaluation: Evaluation) -> None:
        """What ``d_loss`` freezes has been frozen from the first step on: then it depends on nothing that moves.

        Raises:
            ValueError: an earlier step has moved it.
        """
        params = self.evaluate.swap.handles(evaluation.params)
        frozen = [i for i, p in enumerate(params) if not p.requires_grad]
        if wrong := [tuple(params[i].shape) for i in frozen if i in self.moved]:
            raise ValueError(
                f"{evaluation.name} switches requires_grad off for parameters of shapes {wrong[:4]}, which an earlier "
                "inner step has moved. Freeze the same parameters in every step, or with stop_gradient=True."
            )
        self.moved.update(set(range(len(params))) - set(frozen))

    def gradients(
        self, evaluation: Evaluation, also: Sequence[Tensor] = (), by: Adjoint | None = None, **options: Any
    ) -> tuple[Grads, list[Tensor | None]]:
        """What the optimizer would find in ``.grad`` of each parameter, and the gradients of other leaves."""
        name, loss = evaluation.name, evaluation.loss
        params = self.evaluate.swap.handles(evaluation.params)
        if not loss.requires_grad:
            raise ValueError(f"{name} depends on no parameter. Compute it from D's output, without detach or no_grad.")
        if by is not None:
            with causes(name):
                return self._checked(name, params, by.gradients()), []
        # A loss may freeze layers itself: the optimizer finds no gradient there.
        moving = [i for i, p in enumerate(params) if p.requires_grad]
        # The operators tell parameters by their class, which a tracer's leaves do not have.
        skip = not also and self.evaluate.leaf is None
        hooks = [*evaluation.hooks, *(repair(evaluation.fragile) if options.get("create_graph") else [])]
        with parameters_only() if skip else nullcontext():
            asked = [*(params[i] for i in moving), *also]
            found = differentiate(name, [loss], asked, factor=self.evaluate.autocast.first, **options)
        # They belong to this pass: what differentiates it may come by the same nodes.
        for hook in hooks:
            hook.remove()
        grads: list[Tensor | None] = [None] * len(params)
        for i, g in zip(moving, found, strict=False):
            grads[i] = g
        return self._checked(name, params, grads), found[len(moving) :]

    def _checked(self, name: str, params: Sequence[Tensor], found: Grads) -> Grads:
        """The gradients, if an optimizer could step by them, with zeros where the loop leaves such."""
        grads = found
        if isinstance(grads, Joined):
            return grads
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
        if any(g is None for g in grads):
            for i in self.evaluate.zeroed:
                grads[i] = torch.zeros_like(params[i]) if grads[i] is None else grads[i]
        return grads

    def update(self, point: Point, grads: Sequence[Tensor | None], differentiable: bool) -> tuple[Update, Point]:
        """The optimizer's part of a step, and where it ends; D is as its loss has left it."""
        swap = self.evaluate.swap
        carried = swap.after_loss()
        if self.evaluate.left and any(g is None for g in grads):
            check_left(point.blocks, grads, self.evaluate.left)
        if any(b.rule.joint for b in point.blocks):
            # The live optimizer is about to step the live parameters.
            swap.out()
        transforms = self.transforms and replace(self.transforms, holding=lambda p: swap.holding(p, carried[0]))
        done = update(point.blocks, grads, transforms, differentiable)
        return done, Point(done.following(), *carried)

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
        # Whatever recomputes a part of D's forward pass during the backward one must find this step's tensors there.
        if step.adjoint is not None:
            with causes(evaluation.name):
                of_params, of_batch = step.adjoint.pullback(bars, inner=not first)
            self.sensitivity.second_term |= self.sensitivity.add(evaluation.users, of_batch)
            return None if first else step.update.cotangent(of_old, of_params)
        self.evaluate.put(evaluation.params, step.start.buffers, step.start.contents)
        params = [] if first else self.evaluate.swap.handles(evaluation.params)
        inner = [p for p in params if p.requires_grad]
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
            surrogate = torch.stack([(g * bar).sum().to(where) for g, bar in pairs]).sum()
            self.sensitivity.through(surrogate, evaluation)
            self.sensitivity.edge += self.evaluate.edge(evaluation)
        if first:
            return None
        of_params = iter(found)
        return step.update.cotangent(of_old, [next(of_params) if p.requires_grad else None for p in params])

    def generator_term(self, point: Point, weight: float) -> tuple[Tensor, list[Block]]:
        """``weight`` times ``g_loss`` at a point, and the cotangent of the point's tensors."""
        self._note()
        with self.evaluate.swap.shielded(), undisturbed() if self.evaluate.swap.rewinds else nullcontext():
            evaluation = self.evaluate(
                "g_loss", self.g_loss, point.params(), point.buffers, self.batch, contents=point.contents
            )
        value = evaluation.loss * weight if weight != 1 else evaluation.loss
        cotangent = zero_cotangent(point.blocks)
        if not (self.differentiate and value.requires_grad):
            return value.detach(), cotangent
        params = [] if self.stop_gradient else self.evaluate.swap.handles(evaluation.params)
        keep = evaluation.captured or bool(evaluation.outside)
        factor = self.evaluate.autocast.first
        found = differentiate("g_loss", [value], [*params, *evaluation.outer], factor=factor, retain_graph=keep)
        n = len(params)
        self.sensitivity.add(evaluation.users, found[n:])
        self.sensitivity.through_d |= any(g is not None for g in found[:n])
        self.sensitivity.first_term |= any(g is not None for g in found[n:]) or evaluation.captured
        if evaluation.captured:
            self.sensitivity.through(value, evaluation)
        return value.detach(), add(cotangent, found[:n]) if params else cotangent
