"""Run one call of an unrolled loss: take the steps, sweep back over them, and restore the user's objects."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .backward import Store, sweep
from .call.average import weights_of
from .call.batch import tensors_in
from .call.borrowed import Given
from .call.call import Call, Loss, codes_of, once_a_round
from .call.discriminator import check_gradient_hooks
from .call.modes import warn_of_eval, warn_of_frozen
from .call.optimizer import options_of, refuse_shared, refuse_steps
from .evaluation.autocast import Autocast
from .evaluation.evaluate import Evaluator
from .evaluation.first_runs import FirstRuns
from .evaluation.graph import check_not_made
from .evaluation.plain import evaluate_plainly
from .evaluation.runtime import prepare
from .evaluation.shared_memory import Memory, check_memory
from .evaluation.swap import Swap
from .evaluation.written import Written
from .live.exclusive import exclude_others
from .live.random_state import keep_turn
from .live.undo import Undo, keep_autocast, keep_modes
from .optimizers.family import keep_entries, keep_flags, keep_options, state_tensors, stepped
from .optimizers.fresh import note_on_fresh
from .optimizers.read import Traces, read, rule_of
from .proof.first_call import needed
from .unrolling.finite import check_finite
from .unrolling.one_process import OneProcess
from .unrolling.result import check_terms, hand_over, warn_of
from .unrolling.sensitivity import Sensitivity
from .unrolling.step import Point
from .unrolling.unroll import Unroll

# The losses are watched in the first call, in one with more steps than any before, and after 16, 32, 64, … calls.
_AGAIN = 16


@dataclass
class Known:
    """What earlier calls have found out about the user's objects, so that it need not be looked up again.

    Attributes:
        memory: where the discriminator's tensors lie, and which of them share memory.
        traces: the recorded steps of optimizers without a rule.
        proven: the doubts that a call has settled by real steps, and by how many.
        on_logits: losses that are known to be given logits.
        compared: the ways through the transforms whose derivatives have been compared with differences.
        hooks: the number of the next hook when parameters were last searched for hooks, and the ids of the parameters.
            Each registration of a hook anywhere increases the number.
    """

    memory: Memory | None
    traces: Traces = field(default_factory=Traces)
    proven: dict[str, int] = field(default_factory=dict)
    on_logits: set[Loss] = field(default_factory=set)
    compared: set[Any] = field(default_factory=set)
    hooks: Any = None


def run(unrolled: Any, call: Call, ranks: OneProcess) -> tuple[Tensor, list[Tensor]]:
    """Return the loss of one call, and ``d_loss`` at each inner step without a graph.

    Args:
        unrolled: the ``UnrolledGeneratorLoss``, for its options and parts.
        call: the arguments of the call.
        ranks: the processes whose gradients are averaged.

    Raises:
        ValueError: the losses or the optimizer do something that an unroll cannot reproduce.
    """
    modules, optimizers, owned = unrolled.parts()
    known: Known = unrolled._known
    if known.hooks != (hooks := (RemovableHandle.next_id, *map(id, owned))):
        check_gradient_hooks(owned)
        known.hooks = hooks
    key, calls, most = tuple[Any, ...](), 0, 0
    with (undo := Undo()), undo:
        exclude_others(modules, undo, unrolled.names.player)
        ranks.agree(call.steps, owned, (call.batch, call.kwargs), lambda: _facts(unrolled, call, optimizers))
        swap = Swap(modules, owned, bool(unrolled.average) or unrolled.backward.rewinds)
        known.memory = check_memory(swap.holders, unrolled.names.player, known.memory)
        swap.shared = known.memory.shared
        keep_modes(undo)
        keep_turn(undo)
        if call.steps == 0 and not unrolled.moves_asker:
            compiled = not unrolled.backward.second_order
            prepare(swap, (call.g_loss,), second_order=False, compiled=compiled, undo=undo, noted=False)
            unroll = None
            value = evaluate_plainly(call, unrolled.names, unrolled.player, swap, owned, known.on_logits, undo)
        else:
            key = _watched_as(unrolled, call, owned)
            calls, most = unrolled._watched.get(key, (0, 0))
            watched = call.steps <= most and not (calls >= _AGAIN and calls.bit_count() == 1)
            value, unroll = _unroll(unrolled, call, swap, owned, optimizers, ranks, undo, watched)
    swap.check_returned()
    if unroll is None:
        return value, []
    if proof := unroll.proof:
        proof.check(value, unroll.d_losses)
        known.proven.update(dict.fromkeys(proof.doubts, call.steps))
    if unroll.differentiate:
        last = weights_of(unrolled.average, call.steps)[call.steps]
        first_only = unrolled.stop_gradient or not (call.steps and last)
        check_terms(unroll.sensitivity, tensors_in(call.batch, call.kwargs), first_only, unrolled.names)
        second_term = unroll.evaluate.second_order and unroll.sensitivity.second_term
        warn_of(unroll.evaluate.cuts if second_term else {}, unroll.fresh, unroll.outsized)
        warn_of_eval(unrolled.player, unrolled.names.short)
        if type(unroll) is Unroll:
            warn_of_frozen(owned, unrolled.names.short)
        value = hand_over(value, unroll.sensitivity)
        # Last, because a call that raises is no proof for the next one.
        unrolled._watched = {**unrolled._watched, key: (calls + 1, max(most, call.steps))}
    return value, unroll.d_losses


def _unroll(
    unrolled: Any,
    call: Call,
    swap: Swap,
    owned: list[Tensor],
    optimizers: Sequence[Any],
    ranks: OneProcess,
    undo: Undo,
    watched: bool,
) -> tuple[Tensor, Unroll]:
    """Take the steps and sweep back; return the value and the unroll. ``undo`` then restores the user's objects."""
    known: Known = unrolled._known
    # The inner steps need gradients even where the caller wants none.
    differentiate, autocast = torch.is_grad_enabled(), Autocast(owned)
    second_order = differentiate and not unrolled.stop_gradient and unrolled.backward.second_order
    # A Truncate that leaves the first step out needs no warning of it.
    fresh = note_on_fresh(optimizers) if getattr(unrolled.backward, "steps", call.steps) >= call.steps else ""
    rules = [rule_of(o) for o in optimizers]
    ruled = [o for o, rule in zip(optimizers, rules, strict=True) if rule is not None]
    proof = needed(unrolled, call, swap, owned, optimizers, rules) if type(ranks) is OneProcess else None
    if len(ruled) < len(optimizers):
        # A live step may skip parameters that do not require grad, and most loops freeze D for the generator's step.
        keep_flags(owned, undo)
    blocks = read(optimizers, owned, known.traces, rules)
    keep_entries(optimizers, undo)
    check_options_kept = keep_options(optimizers, undo)
    refuse_steps(ruled, undo)
    if autocast.active:
        keep_autocast(undo, autocast.dtypes)
    settings = prepare(swap, (call.d_loss, call.g_loss), second_order, not unrolled.backward.second_order, undo)
    batch, names, who = tensors_in(call.batch, call.kwargs), unrolled.names, unrolled.names.short
    moving = [*owned, *(t for t in swap.originals() if not isinstance(t, nn.Parameter))]
    state = [] if watched else state_tensors(optimizers)
    if not watched:
        check_not_made(batch, owned, names)
        refuse_shared(state_tensors(ruled), swap.ids, who)
    given = Given(batch, swap.ids, [*moving, *state])
    undo.later(given.put_back)
    first_runs = None
    if differentiate and not watched:
        apart = [t for t in state if id(t) not in swap.ids]
        first_runs = FirstRuns(swap.modules, owned, apart, moving, who)
    through_steps, from_start = differentiate and not unrolled.stop_gradient, watched and unrolled.moves_asker
    written = Written(names.loss, names.player_loss, not watched, from_start) if through_steps else None
    evaluate = Evaluator(
        unrolled.player,
        owned,
        swap,
        call.kwargs,
        autocast,
        second_order,
        settings=settings,
        on_logits=known.on_logits,
        first_runs=first_runs,
        frozen=_held(swap.frozen, optimizers),
        written=written,
        given=given,
        who=who,
        once=None if unrolled.average else unrolled.names.loss,
    )
    undo.later(evaluate.borrowed.give_back)
    with autocast.outside(), torch.enable_grad():
        unroll = unrolled.unroll(
            owned,
            evaluate=evaluate,
            d_loss=call.d_loss,
            g_loss=call.g_loss,
            inner_batch=call.inner and autocast.within(once_a_round(call.inner, unrolled.round)),
            batch=call.batch,
            transforms=replace(unrolled.transforms(owned), check=through_steps, compared=known.compared),
            differentiate=differentiate,
            stop_gradient=unrolled.stop_gradient,
            ranks=ranks,
            proof=proof,
            fresh=fresh,
            names=unrolled.names,
            sensitivity=Sensitivity(first_runs.switched_on if first_runs else None),
        )
        start = Point(blocks, swap.originals(), swap.contents())
        weights = {k * unrolled.round: w for k, w in weights_of(unrolled.average, call.steps).items()}
        steps = call.steps * unrolled.round
        value = sweep(unroll, start, steps, weights, unrolled.backward)
        slow = Store() if second_order else unrolled.backward
        of_batch, of_params = given.changed(), written.changed() if written else []
        flags = check_finite(
            unroll.d_losses,
            value,
            {"batch": batch, unrolled.names.player.split()[-1]: start.params()},
            unroll.sensitivity.tensors(),
            lambda: sweep(unroll.afresh(), start, steps, weights, slow),
            unroll.name_of,
            unrolled.names,
            [*of_batch, *of_params],
        )
    check_options_kept()
    given.finish(flags[: len(of_batch)])
    swap.check_unwritten()
    if written:
        written.finish(flags[len(of_batch) :], start.params())
    return value, unroll


def _watched_as(unrolled: Any, call: Call, owned: Sequence[Tensor]) -> tuple[Any, ...]:
    """Return what calls have in common of which one has to be watched: code, options, and hooks of parameters."""
    hooks = [codes_of(hook) for p in owned if p._backward_hooks for hook in p._backward_hooks.values()]
    return call.code, unrolled.stop_gradient, type(unrolled.backward), *hooks


def _held(frozen: Sequence[Tensor], optimizers: Sequence[Any]) -> list[Tensor]:
    """Return the frozen parameters that an optimizer holds, so that a real step would move them without the flag."""
    held = {id(p) for o in optimizers for p in stepped(o)} if frozen else set[int]()
    return [p for p in frozen if id(p) in held]


def _facts(unrolled: Any, call: Call, optimizers: Sequence[Any]) -> dict[str, Any]:
    """Return what processes that average their gradients must have in common."""
    return {
        "d_loss": call.d_loss,
        "g_loss": call.g_loss,
        "backward": unrolled.backward,
        "average": unrolled.average,
        "stop_gradient": unrolled.stop_gradient,
        "differentiation": torch.is_grad_enabled(),
        **options_of(optimizers),
    }
