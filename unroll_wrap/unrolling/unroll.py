"""K optimizer steps of the discriminator, each from fresh leaves, each with its pullback.

Forwards, one step is two maps: the network's gradient g = ∂d_loss/∂θ, then the optimizer's rule
(θ, g, state) → (θ', state'). Backwards, with λ the cotangent of (θ', state'): the rule's pullback gives ḡ and the
direct parts, and one second-order pass gives (∂g/∂θ)ᵀḡ and (∂g/∂fake)ᵀḡ.

The leaves are fresh, because the user's own code would also differentiate a θ^k that stays attached to the graph: in a
penalty ``autograd.grad(D(x).sum(), x)`` on a batch that an earlier step has used, D's parameters would depend on x.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..call.batch import tensors_in
from ..call.borrowed import have_changed
from ..call.logits import check_logits
from ..call.names import GENERATOR, Names
from ..call.runs import Run
from ..evaluation.evaluate import Evaluator
from ..evaluation.evaluation import Evaluation
from ..evaluation.gradients import causes, differentiate
from ..evaluation.graph import leads_to
from ..live.random_state import undisturbed
from ..operators.adjoint import adjoint
from ..optimizers.block import Block
from ..optimizers.transforms import Transforms
from ..optimizers.update import Update, add_gradients, check_left, update, zero_cotangent
from .one_process import Grads, OneProcess
from .sensitivity import Sensitivity
from .step import Point, Step
from .step_gradients import gradients, pull, refuse_stale


@dataclass
class Unroll:
    """One call: losses, batches and transforms, and what the sweep has found so far."""

    evaluate: Evaluator  # Runs a loss with given tensors in D.
    d_loss: Callable[..., Tensor]  # ``(D, *batch, **kwargs) -> scalar``.
    g_loss: Callable[..., Tensor]  # ``(D, *batch, **kwargs) -> scalar``.
    # ``k -> batch`` for inner step k; None if every step uses ``batch``.
    inner_batch: Callable[[int], tuple[Any, ...]] | None
    batch: tuple[Any, ...]  # The batch of the call, which ``g_loss`` is given.
    transforms: Transforms  # The user's transforms of gradients before the rule, and of parameters after it.
    differentiate: bool  # Whether the caller wants a gradient at all.
    stop_gradient: bool  # Whether the gradient is the first term of Eq. 12 alone.
    ranks: OneProcess = field(default_factory=OneProcess)  # The processes over which gradients are averaged.
    proof: Any = None  # If this call will be compared with real steps, is told of every loss before it runs.
    fresh: str = ""  # A note on optimizers that start from empty state.
    names: Names = GENERATOR  # What messages call the losses.
    # The values of ``d_loss`` in the inner steps so far, without graph.
    d_losses: list[Tensor] = field(default_factory=list)
    # In a first call, the tensors of the batches that the inner steps have been given.
    drawn: list[Tensor] = field(default_factory=list)
    # Positions of the parameters that ``d_loss`` has left unfrozen in any step so far.
    moved: set[int] = field(default_factory=set)
    # The derivative that the sweep has accumulated so far.
    sensitivity: Sensitivity = field(default_factory=Sensitivity)
    # The length of the first step's part of the derivative divided by that of the rest, if autograd ran.
    outsized: float = 0.0

    through_start = False

    def step(
        self, point: Point, k: int, batch: tuple[Any, ...], differentiable: bool, averages: Grads | None = None
    ) -> tuple[Point, Step]:
        """Return θ^{k+1} and step k, which keeps what its pullback needs if ``differentiable``.

        ``averages`` are the average gradients of several ranks that a replayed step has used.
        """
        # If there is no pullback, the leaves of the graph matter for checks alone: in the first step and call, and if
        # only a value is asked for.
        walk = differentiable or k == 0 or self.evaluate.first_runs is not None or not self.differentiate
        evaluation = self.evaluate_d(point, k, batch, walk=walk)
        by = None
        if differentiable and evaluation.nodes is not None:
            params = self.evaluate.swap.handles(evaluation.params)
            by = adjoint(evaluation.loss, *evaluation.nodes, params, evaluation.arguments.leaves)
        grads, _ = gradients(self.evaluate, evaluation, by=by, create_graph=differentiable)
        averages = averages or self.ranks.gradients(grads, batch)
        update, following = self.update(point, averages or grads, differentiable)
        return following, Step(point, evaluation, grads, averages, update, by)

    def afresh(self) -> "Unroll":
        """Return the same call before any of its steps, for this process alone."""
        return replace(self, ranks=OneProcess(), proof=None, d_losses=[], moved=set(), sensitivity=Sensitivity())

    def advance(self, point: Point, k: int) -> Point:
        """Return θ^{k+1} after a step from θ^k on its own batch, of which nothing is kept for a pullback."""
        return self.step(*self.draw(point, k), differentiable=False)[0]

    def draw(self, point: Point, k: int) -> tuple[Point, int, tuple[Any, ...]]:
        """Return the arguments of ``step``. The batch is drawn while D is at θ^k, and that may change its buffers."""
        if self.inner_batch is None:
            self._note(self.batch)
            return point, k, self.batch
        swap, params, this = self.evaluate.swap, point.params(), Run()
        leaves = self.evaluate.leaves(params, this)
        self.evaluate.put(leaves, point.buffers, point.contents)
        own, name, written = swap.handles(leaves), f"resample for inner step {k}", self.evaluate.written
        # Also in the first step, which may write: predict compares the memory of two steps here.
        before = written.values(params) if written else ()
        filled = [t.detach().clone() for t in self.drawn]
        batch = self.inner_batch(k)
        this.closed = True
        self._check_refilled(name, filled)
        if self.evaluate.first_runs:
            own_batch = set(map(id, tensors_in(self.batch)))
            # Sparse tensors cannot be compared.
            self.drawn += [t for t in tensors_in(batch) if t.layout is torch.strided and id(t) not in own_batch]
        if written and k:
            written.check(name, before, params, self.names.short)
        if not all([p.requires_grad for p in own]):
            raise ValueError(
                f"{name} switches requires_grad off for parameters of {self.names.short}, which a real step would then "
                f"leave where they are. Let {self.names.player_loss} freeze them, the same in every step."
            )
        if leads_to(tensors_in(batch), own):
            raise ValueError(
                f"The batch that resample gave for inner step {k} has a graph that leads to "
                f"{self.names.short}'s parameters. Detach it there, or compute it inside {self.names.player_loss}."
            )
        self._note(batch)
        return point._replace(buffers=swap.buffers(), contents=swap.contents()), k, batch

    def _check_refilled(self, name: str, before: Sequence[Tensor]) -> None:
        """Raise if resample has filled the tensors of an earlier batch again, which held ``before``."""
        for t, was in zip(self.drawn, before, strict=True):
            if t.shape != was.shape or have_changed(was, t):
                raise ValueError(
                    f"{name} writes to a tensor of shape {tuple(t.shape)} of an earlier batch, and the derivative of "
                    "that step would be wrong. Give every inner step tensors of its own (.clone())."
                )

    def _note(self, batch: tuple[Any, ...] | None = None) -> None:
        if self.proof:
            self.proof.note(batch)

    def evaluate_d(
        self, point: Point, k: int, batch: tuple[Any, ...], params: Sequence[Tensor] | None = None, walk: bool = True
    ) -> Evaluation:
        """Run ``d_loss`` of inner step k with ``params``, or with the point's parameters if ``params`` is None."""
        params = point.params() if params is None else params
        evaluation = self.evaluate(self.name_of(k), self.d_loss, params, point.buffers, batch, walk, point.contents)
        if k == len(self.d_losses):
            self.d_losses.append(evaluation.loss.detach())
            self._check_frozen(evaluation)
            self._check_guarded(evaluation)
        if k == 0:
            check_logits(self.d_loss, evaluation.loss, self.evaluate.on_logits)
        return evaluation

    def _check_frozen(self, evaluation: Evaluation, mine: frozenset[int] | None = None) -> None:
        """Raise if the loss has frozen a parameter that has moved, which would lose its dependence on those steps."""
        params = self.evaluate.swap.handles(evaluation.params)
        frozen = [i for i, p in enumerate(params) if not p.requires_grad]
        if wrong := [tuple(params[i].shape) for i in frozen if i in self.moved]:
            raise ValueError(
                f"{evaluation.name} switches requires_grad off for parameters of shapes {wrong[:4]}, which an earlier "
                "inner step has moved. Freeze the same parameters in every step, or with stop_gradient=True."
            )
        self.moved.update((set(range(len(params))) if mine is None else mine) - set(frozen))

    def _check_guarded(self, evaluation: Evaluation, mine: frozenset[int] | None = None) -> None:
        """Raise if the loss has kept something attached by a guard that the player's own step detaches."""
        if not (self.evaluate.first_runs and self.evaluate.guarded):
            return
        params = self.evaluate.swap.handles(evaluation.params)
        if leads_to(self.evaluate.guarded, params if mine is None else [params[i] for i in mine]):
            raise ValueError(
                f"{evaluation.name} gives unroll_wrap.detach something that {self.names.short} has computed. It stays "
                f"attached inside an unroll, so the steps of {self.names.short} would be others than those of your "
                "loop. Pass it what the generator makes, and write x.detach() here."
            )

    def update(
        self,
        point: Point,
        grads: Sequence[Tensor | None],
        differentiable: bool,
        mine: frozenset[int] | None = None,
    ) -> tuple[Update, Point]:
        """Return the update by the optimizer, and the next point; D has to be as ``d_loss`` has left it."""
        swap = self.evaluate.swap
        carried = swap.after_loss()
        if self.evaluate.left and any(g is None for g in grads):
            left = [(i, g) for i, g in self.evaluate.left if mine is None or i in mine]
            check_left(point.blocks, grads, left)
        if any(b.rule.joint for b in point.blocks):
            # A traced rule steps the live optimizer, which has to find its own values in the live parameters.
            swap.out()
        transforms = self.transforms and replace(
            self.transforms, holding=lambda p: swap.holding(p, carried[0]), moved=len(self.d_losses) > 1
        )
        done = update(point.blocks, grads, transforms, differentiable)
        return done, Point(done.following(), *carried)

    def pullback(self, step: Step, cotangent: list[Block], first: bool) -> list[Block] | None:
        """Pull the cotangent of a step's result back to its start, and add the user's part to ``sensitivity``.

        The result is None for the ``first`` step, because the live discriminator depends on no generator.
        """
        evaluation = step.evaluation
        bars, of_old = step.update.pullback(cotangent)
        # A graph that the formulas cover has no checkpoints, so D need not hold this step's tensors.
        if step.adjoint is not None:
            with causes(evaluation.name):
                of_params, of_batch = step.adjoint.pullback(bars, inner=not first)
            self.sensitivity.second_term |= self.sensitivity.add(evaluation.users, of_batch)
        else:
            of_params = pull(self, evaluation, step.start, step.grads, bars, first)
        return None if first else step.update.cotangent(of_old, of_params)

    def name_of(self, k: int) -> str:
        """Return what messages call the loss that is the k-th of ``d_losses``."""
        return f"{self.names.player_loss} at inner step {k}"

    def finish(self, cotangents: Sequence[list[Block]]) -> None:
        """Take what the sweep has found of the derivative by the start, which the live discriminator has no use for."""

    def generator_term(self, point: Point, weight: float) -> tuple[Tensor, list[Block]]:
        """Return ``weight`` times ``g_loss`` at a point, without graph, and the cotangent of the point's tensors."""
        self._note()
        with self.evaluate.swap.shielded(), undisturbed() if self.evaluate.swap.rewinds else nullcontext():
            evaluation = self.evaluate(
                self.names.loss, self.g_loss, point.params(), point.buffers, self.batch, contents=point.contents
            )
        refuse_stale(evaluation, evaluation.stale and self.through_start)
        value = evaluation.loss * weight if weight != 1 else evaluation.loss
        cotangent = zero_cotangent(point.blocks)
        if not (self.differentiate and value.requires_grad):
            return value.detach(), cotangent
        params = self.evaluate.swap.handles(evaluation.params) if self.through_start or not self.stop_gradient else []
        keep = evaluation.captured or bool(evaluation.outside)
        factor = self.evaluate.autocast.first
        found = differentiate(self.names.loss, [value], [*params, *evaluation.outer], factor=factor, retain_graph=keep)
        n = len(params)
        self.sensitivity.add(evaluation.users, found[n:])
        self.sensitivity.through_d |= any(g is not None for g in found[:n])
        self.sensitivity.first_term |= self.sensitivity.depends(evaluation.users, found[n:]) or evaluation.captured
        if evaluation.captured:
            self.sensitivity.through(value, evaluation)
        return value.detach(), add_gradients(cotangent, found[:n]) if params else cotangent
