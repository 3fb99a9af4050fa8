"""Take the inner steps of one call and sweep back over them, and check what the losses have done meanwhile."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .backward import Store, sweep
from .call.average import weights_of
from .call.batch import tensors_in
from .call.borrowed import Given
from .call.call import Call, once_a_round
from .call.optimizer import refuse_shared, refuse_steps
from .evaluation.autocast import Autocast
from .evaluation.evaluate import Evaluator
from .evaluation.first_runs import FirstRuns
from .evaluation.graph import check_not_made
from .evaluation.runtime import prepare
from .evaluation.swap import Swap
from .evaluation.written import Written
from .known import Known
from .live.undo import Undo, keep_autocast
from .optimizers.block import Block
from .optimizers.family import keep_entries, keep_flags, keep_options, state_tensors, stepped
from .optimizers.fresh import note_on_fresh
from .optimizers.read import read, rule_of
from .proof.first_call import Proof, needed
from .unrolling.finite import check_finite
from .unrolling.one_process import OneProcess
from .unrolling.sensitivity import Sensitivity
from .unrolling.step import Point
from .unrolling.unroll import Unroll


class InnerLoop:
    """K steps of the player's optimizers from where the live objects are, and the derivative through them.

    Args:
        unrolled: the ``UnrolledLoss``, for its options and parts.
        call: the arguments of the call.
        swap: puts tensors into the player.
        owned: the parameters that the steps move.
        optimizers: the plain optimizers that move them.
        ranks: the processes whose gradients are averaged.
        undo: restores the user's objects after the call.
        watched: whether the losses have been watched before, in a call like this one with as many steps or more.
    """

    def __init__(
        self,
        unrolled: Any,
        call: Call,
        swap: Swap,
        owned: list[Tensor],
        optimizers: Sequence[Any],
        ranks: OneProcess,
        undo: Undo,
        watched: bool,
    ) -> None:
        self.unrolled, self.call = unrolled, call
        self.swap, self.owned, self.optimizers = swap, owned, optimizers
        self.ranks, self.undo, self.watched = ranks, undo, watched
        self.known: Known = unrolled._known
        self.batch = tensors_in(call.batch, call.kwargs)
        # The inner steps need gradients even where the caller wants none.
        self.differentiate = torch.is_grad_enabled()
        self.through_steps = self.differentiate and not unrolled.stop_gradient
        self.second_order = self.through_steps and unrolled.backward.second_order
        self.autocast = Autocast(owned)

    def run(self) -> tuple[Tensor, Unroll]:
        """Return the loss after the steps, without a graph, and the unroll, which has found its derivative."""
        unrolled, call, backward = self.unrolled, self.call, self.unrolled.backward
        # A Truncate that leaves the first step out needs no warning of it.
        fresh = note_on_fresh(self.optimizers) if getattr(backward, "steps", call.steps) >= call.steps else ""
        blocks, proof, check_options_kept = self._read()
        evaluate = self._evaluator()
        transforms = unrolled.transforms(self.owned)
        steps, weights = call.steps * unrolled.round, weights_of(unrolled.average, call.steps)
        weights = {k * unrolled.round: weight for k, weight in weights.items()}
        with self.autocast.outside(), torch.enable_grad():
            unroll = unrolled.unroll(
                self.owned,
                evaluate=evaluate,
                d_loss=call.d_loss,
                g_loss=call.g_loss,
                inner_batch=call.inner and self.autocast.within(once_a_round(call.inner, unrolled.round)),
                batch=call.batch,
                transforms=replace(transforms, check=self.through_steps, compared=self.known.compared),
                differentiate=self.differentiate,
                stop_gradient=unrolled.stop_gradient,
                ranks=self.ranks,
                proof=proof,
                fresh=fresh,
                names=unrolled.names,
                sensitivity=Sensitivity(evaluate.first_runs.switched_on if evaluate.first_runs else None),
            )
            start = Point(blocks, self.swap.originals(), self.swap.contents())
            value = sweep(unroll, start, steps, weights, backward)
            finish = self._check(unroll, start, value, partial(self._again, unroll, start, steps, weights))
        check_options_kept()
        finish()
        return value, unroll

    def _read(self) -> tuple[list[Block], Proof | None, Callable[[], None]]:
        """Read the optimizers.

        Returns:
            The parameters and the state of the start, the comparison with real steps that the call needs, and a
            function that raises if a loss has changed an option.
        """
        rules = [rule_of(o) for o in self.optimizers]
        ruled = [o for o, rule in zip(self.optimizers, rules, strict=True) if rule is not None]
        proof = None
        if type(self.ranks) is OneProcess:
            proof = needed(self.unrolled, self.call, self.swap, self.owned, self.optimizers, rules)
        if len(ruled) < len(self.optimizers):
            # A live step may skip parameters that do not require grad, and most loops freeze D while G learns.
            keep_flags(self.owned, self.undo)
        blocks = read(self.optimizers, self.owned, self.known.traces, rules)
        if not self.watched:
            refuse_shared(state_tensors(ruled), self.swap.ids, self.unrolled.names.short)
        keep_entries(self.optimizers, self.undo)
        check_options_kept = keep_options(self.optimizers, self.undo)
        refuse_steps(ruled, self.undo)
        return blocks, proof, check_options_kept

    def _evaluator(self) -> Evaluator:
        """Prepare torch and the user's objects for the runs of the losses, and return what runs them."""
        unrolled, call, swap, names = self.unrolled, self.call, self.swap, self.unrolled.names
        if self.autocast.active:
            keep_autocast(self.undo, self.autocast.dtypes)
        losses = call.d_loss, call.g_loss
        settings = prepare(swap, losses, self.second_order, not unrolled.backward.second_order, self.undo)
        moving = [*self.owned, *(t for t in swap.originals() if not isinstance(t, nn.Parameter))]
        state = [] if self.watched else state_tensors(self.optimizers)
        if not self.watched:
            check_not_made(self.batch, self.owned, names)
        given = Given(self.batch, swap.ids, [*moving, *state])
        self.undo.later(given.put_back)
        first_runs = written = None
        if self.differentiate and not self.watched:
            apart = [t for t in state if id(t) not in swap.ids]
            first_runs = FirstRuns(swap.modules, self.owned, apart, moving, names.short)
        if self.through_steps:
            from_start = self.watched and unrolled.moves_asker
            written = Written(names.loss, names.player_loss, not self.watched, from_start)
        evaluate = Evaluator(
            unrolled.player,
            self.owned,
            swap,
            call.kwargs,
            self.autocast,
            self.second_order,
            settings=settings,
            on_logits=self.known.on_logits,
            first_runs=first_runs,
            frozen=self._held(),
            written=written,
            given=given,
            who=names.short,
            once=None if unrolled.average else names.loss,
        )
        self.undo.later(evaluate.borrowed.give_back)
        return evaluate

    def _held(self) -> list[Tensor]:
        """Return the frozen parameters that an optimizer holds: only their flag keeps a real step from moving them."""
        frozen = self.swap.frozen
        held = {id(p) for o in self.optimizers for p in stepped(o)} if frozen else set[int]()
        return [p for p in frozen if id(p) in held]

    def _again(self, unroll: Unroll, start: Point, steps: int, weights: Mapping[int, float]) -> None:
        """Repeat the call by the operations that tell which of them gives NaN."""
        sweep(unroll.afresh(), start, steps, weights, Store() if self.second_order else self.unrolled.backward)

    def _check(self, unroll: Unroll, start: Point, value: Tensor, again: Callable[[], None]) -> Callable[[], None]:
        """Raise unless losses and gradient are finite.

        Returns:
            A function that raises if a loss has written to the batch or to D.
        """
        given, written, names = unroll.evaluate.given, unroll.evaluate.written, self.unrolled.names
        of_batch, of_params = given.changed(), written.changed() if written else []
        # What is to be read from the device comes with the losses, in one transfer.
        flags = check_finite(
            unroll.d_losses,
            value,
            {"batch": self.batch, names.player.split()[-1]: start.params()},
            unroll.sensitivity.tensors(),
            again,
            unroll.name_of,
            names,
            [*of_batch, *of_params],
        )

        def finish() -> None:
            given.finish(flags[: len(of_batch)])
            self.swap.check_unwritten()
            if written:
                written.finish(flags[len(of_batch) :], start.params())

        return finish
