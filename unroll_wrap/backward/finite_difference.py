"""``FiniteDifference``: second-order products from gradients at shifted parameters."""

import copy
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..evaluation.evaluation import Evaluation
from ..evaluation.linear_pieces import Diverged, Pieces
from ..evaluation.precision import lengths, precision
from ..evaluation.runtime import any_compiled
from ..live.random_state import RandomState, same
from ..optimizers.block import Block
from ..optimizers.update import Update
from ..unrolling.step import Point
from ..unrolling.step_gradients import gradients
from ..unrolling.unroll import Unroll
from .sweep import Backward, Tape


@dataclass(frozen=True)
class FiniteDifference(Backward):
    """Approximate, two gradients a step: for a D without second derivatives (compiled, cuDNN RNNs, flash attention).

    ∂(gᵀḡ)/∂(θ, fake) ≈ (∇d_loss(θ + ε ḡ) - ∇d_loss(θ)) / ε, or with ``central`` the difference between θ ± ε ḡ over 2ε
    (three gradients a step, error of order ε² instead of ε). The optimizer's rule is differentiated exactly. Unlike
    autograd, a difference includes what ``d_loss`` detaches (such as the power iteration of a spectral norm).

    ReLU and other piecewise linear functions are extended from the piece that they were on, except in compiled code: in
    float32 a shift moves some units across their kinks, and these jumps exceed the second term.

    Args:
        eps: ε · ‖ḡ‖ / ‖θ‖, the relative length of the shift. None balances truncation against rounding: √u for the
            one-sided quotient and ∛u for the central one, where u is the machine epsilon of the loss. It is made longer
            if a shift of that length hardly changes the gradient.
        central: whether to use the central quotient.

    Examples:
        >>> D, real, fake = torch.nn.Linear(2, 1), torch.randn(8, 2), torch.randn(8, 2, requires_grad=True)
        >>> def gradient(backward):
        ...     unrolled = unroll_wrap.UnrolledGeneratorLoss(D, torch.optim.SGD(D.parameters(), 0.5), backward=backward)
        ...     return torch.autograd.grad(unrolled(real, fake), fake)[0]
        >>> torch.allclose(gradient(unroll_wrap.FiniteDifference()), gradient(unroll_wrap.Store()), atol=1e-3)
        True
    """

    eps: float | None = None
    central: bool = False
    second_order = False
    rewinds = True

    def __post_init__(self) -> None:
        number = isinstance(self.eps, (int, float)) and not isinstance(self.eps, bool)
        if self.eps is not None and not (number and 0 < self.eps < math.inf):
            raise ValueError(f"FiniteDifference(eps={self.eps!r}). Pass a positive number, or None.")

    def tape(self, unroll: Unroll, first: int, steps: int) -> Tape:
        """Return a tape that keeps the points and the gradients of the differentiated steps."""
        if unroll.evaluate.hooks:
            # The difference is one of gradients before the hooks, so hooks are differentiated with the update instead.
            evaluate = copy.copy(unroll.evaluate)
            transforms = replace(unroll.transforms, hooks=evaluate.hooks)
            evaluate.hooks = []
            unroll = replace(unroll, evaluate=evaluate, transforms=transforms)
        return _Stack(unroll, first, steps, self)


class _Taken(NamedTuple):
    """What the pullback of a step needs: its start, its random draws, its linear pieces, its gradients, its update."""

    point: Point
    batch: tuple[Any, ...]
    random: RandomState
    pieces: Pieces
    evaluation: Evaluation
    grads: list[Tensor | None]
    outer: list[Tensor | None]
    update: Update


class _Stack(Tape):
    def __init__(self, unroll: Unroll, first: int, steps: int, settings: FiniteDifference) -> None:
        self._unroll = unroll
        self.first = first
        # The step that is run again, to see whether it is the same: one that finds what earlier steps have left in D.
        self._checked = steps - 1 if unroll.evaluate.first_runs else first
        self._settings = settings
        # Compiled code would be compiled again for every such context.
        self._hold = not any_compiled([*unroll.evaluate.swap.modules, unroll.d_loss, unroll.g_loss])
        self._steps: list[_Taken] = []

    def step(self, point: Point, k: int) -> Point:
        unroll = self._unroll
        if k < self.first:
            return unroll.advance(point, k)
        point, _, batch = unroll.draw(point, k)
        random = RandomState(unroll.evaluate.owned)
        pieces = Pieces()
        with pieces.noted() if self._hold else nullcontext():
            evaluation = unroll.evaluate_d(point, k, batch)
        if unroll.evaluate.rewrote:
            # A layer that initialises itself would do so again and overwrite the shift, without the note that it has.
            point = point._replace(contents=unroll.evaluate.swap.contents())
        keep = self._keeps(evaluation) or bool(evaluation.hooks)
        found, outer = gradients(unroll.evaluate, evaluation, also=evaluation.outer, retain_graph=keep)
        grads = [None if g is None else g.detach() for g in found]
        if evaluation.hooks:
            # The first pass has removed the hooks, so this one runs without them.
            keep = self._keeps(evaluation)
            plain, plain_outer = gradients(unroll.evaluate, evaluation, also=evaluation.outer, retain_graph=keep)
            _check_hooks(evaluation.name, [*grads, *outer], [*plain, *plain_outer])
        update, following = unroll.update(point, unroll.ranks.gradients(grads, batch) or grads, differentiable=True)
        self._steps.append(_Taken(point, batch, random, pieces, evaluation, grads, outer, update))
        return following

    def _keeps(self, evaluation: Evaluation) -> bool:
        """Return whether a loss's graph has a part that another evaluation needs: one that it has not made itself."""
        # A generator that ``resample`` runs is found in the graph of every evaluation with its batch.
        return evaluation.captured or bool(evaluation.outside and self._unroll.inner_batch)

    def _check(self, taken: _Taken, k: int) -> None:
        """Run ``d_loss`` again and raise RuntimeError unless it is the same, in a first call its gradients too."""
        evaluate = self._unroll.evaluate
        with taken.random.replayed():
            evaluation = self._unroll.evaluate_d(taken.point, k, taken.batch, walk=bool(evaluate.first_runs))
        what, before, again = "d_loss", taken.evaluation.loss.detach(), evaluation.loss.detach()
        alike = same(again, before)
        if alike and evaluate.first_runs:
            grads, _ = gradients(evaluate, evaluation, retain_graph=self._keeps(evaluation))
            what, (longer, length) = "The length of the gradients of d_loss", lengths(grads, taken.grads)
            before, again = before.new_tensor(length), before.new_tensor(longer)
            unit = torch.finfo(before.dtype).eps
            alike = same(again, before, 100 * unit, noise=10 * unit)
        if not alike:
            raise RuntimeError(
                f"{what} is {before.item()} and, with the same arguments again, {again.item()}: it is not "
                "deterministic, so differences of it mean nothing. Draw from torch's generators, guard what it changes "
                "with unroll_wrap.is_unrolling(), or pass backward=Store()."
            )

    def pullback(self, k: int, cotangent: list[Block]) -> list[Block] | None:
        taken = self._steps.pop()
        if k == self._checked:
            self._check(taken, k)
        g_bars, of_old = taken.update.pullback(cotangent)
        products = self._products(taken, k, g_bars)
        return None if k == self.first else taken.update.cotangent(of_old, products)

    def _products(self, taken: _Taken, k: int, g_bars: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return (∂g/∂θ)ᵀḡ for every parameter, and add the products for the user's tensors to the sensitivity."""
        of_params, of_bars = lengths(taken.point.params(), g_bars)
        if of_bars == 0:
            return [None] * len(taken.grads)
        shift, ahead = self._ahead(taken, k, g_bars, max(of_params, 1.0) / of_bars)
        if self._settings.central:
            behind, width = self._shifted(taken, k, g_bars, -shift), 2 * shift
        else:
            behind, width = _Gradients(taken.evaluation, taken.grads, taken.outer), shift

        sensitivity = self._unroll.sensitivity
        for (evaluation, _, outer), sign in ((ahead, 1 / width), (behind, -1 / width)):
            scaled = [None if g is None else g * sign for g in outer]
            sensitivity.second_term |= sensitivity.add(evaluation.users, scaled) or evaluation.captured
            if evaluation.captured:
                sensitivity.through(evaluation.loss.reshape(()) * sign, evaluation)
        return [
            None if a is None or b is None else (a - b.detach()) / width
            for a, b in zip(ahead.params, behind.params, strict=True)
        ]

    def _ahead(self, taken: _Taken, k: int, g_bars: Sequence[Tensor | None], unit: float) -> tuple[float, "_Gradients"]:
        """Return ε and the gradients at θ + ε ḡ; ``unit`` is the ε whose shift is as long as θ."""
        rounding = precision([taken.point.params()[0], taken.evaluation.loss])
        relative = rounding ** (1 / 3 if self._settings.central else 1 / 2)
        shift = (self._settings.eps or relative) * unit
        found = self._shifted(taken, k, g_bars, shift)
        if self._settings.eps is None:
            # Adam magnifies gradients that are always zero (of a bias before BatchNorm, or the last bias of a
            # Wasserstein D). They fill the shift and change nothing, and the part that matters is lost in rounding.
            change, limit = _relative_change(taken, found), shift / relative
            while change < relative / 10 and shift < limit:
                longer = min(shift * (relative / change if change else 1e3), limit)
                further = self._shifted(taken, k, g_bars, longer)
                change = _relative_change(taken, further)
                if change > 10 * relative:
                    break  # The longer shift crosses a kink.
                shift, found = longer, further
        return shift, found

    def _shifted(self, taken: _Taken, k: int, g_bars: Sequence[Tensor | None], shift: float) -> "_Gradients":
        params = [
            p if bar is None else torch.add(p, bar, alpha=shift)
            for p, bar in zip(taken.point.params(), g_bars, strict=True)
        ]
        evaluation = self._evaluate(taken, k, params, taken.pieces.held() if self._hold else nullcontext())
        evaluate, keep = self._unroll.evaluate, self._keeps(evaluation)
        grads, outer = gradients(evaluate, evaluation, also=evaluation.outer, retain_graph=keep)
        return _Gradients(evaluation, grads, outer)

    def _evaluate(
        self, taken: _Taken, k: int, params: list[Tensor], around: AbstractContextManager[object]
    ) -> Evaluation:
        try:
            with taken.random.replayed(), around:
                return self._unroll.evaluate_d(taken.point, k, taken.batch, params)
        except Diverged:
            # A branch on data went the other way, so this is a difference across a kink.
            return self._evaluate(taken, k, params, nullcontext())


class _Gradients(NamedTuple):
    """The gradients of ``d_loss`` at shifted parameters, by the parameters and by the leaves outside D."""

    evaluation: Evaluation
    params: list[Tensor | None]
    outer: list[Tensor | None]


def _check_hooks(name: str, grads: Sequence[Tensor | None], without: Sequence[Tensor | None]) -> None:
    """Raise if hooks change gradients: a difference along ḡ is (∂g/∂θ)ᵀḡ only if g is the gradient of a function."""
    pairs = zip(grads, without, strict=True)
    if not all(g is plain if g is None or plain is None else torch.allclose(g, plain) for g, plain in pairs):
        raise RuntimeError(
            f"{name} has hooks on its graph that change gradients, which are then those of no function, and "
            "differences do not give their derivative. Pass backward=Store()."
        )


def _relative_change(taken: _Taken, found: _Gradients) -> float:
    """Return how much a shift has changed the gradients, relative to their length."""
    here = [*taken.grads, *taken.outer]
    moved = [
        None if a is None or b is None else a.detach() - b.detach()
        for a, b in zip([*found.params, *found.outer], here, strict=True)
    ]
    of_moved, of_here = lengths(moved, here)
    return of_moved / (of_here or 1.0)
