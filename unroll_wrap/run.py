"""Run one call of an unrolled loss: take the steps, sweep back over them, and restore the user's objects."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from .call.average import weights_of
from .call.batch import tensors_in
from .call.call import Call, codes_of
from .call.discriminator import check_gradient_hooks
from .call.modes import warn_of_eval, warn_of_frozen
from .call.optimizer import options_of
from .evaluation.plain import evaluate_plainly
from .evaluation.runtime import prepare
from .evaluation.shared_memory import check_memory
from .evaluation.swap import Swap
from .inner_loop import InnerLoop
from .known import Known
from .live.exclusive import exclude_others
from .live.random_state import keep_turn
from .live.undo import Undo, keep_modes
from .unrolling.one_process import OneProcess
from .unrolling.result import check_terms, hand_over, warn_of
from .unrolling.unroll import Unroll

# The losses are watched in the first call, in one with more steps than any before, and after 16, 32, 64, … calls.
_AGAIN = 16


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
            loop = InnerLoop(unrolled, call, swap, owned, optimizers, ranks, undo, watched)
            value, unroll = loop.run()
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


def _watched_as(unrolled: Any, call: Call, owned: Sequence[Tensor]) -> tuple[Any, ...]:
    """Return what calls have in common of which one has to be watched: code, options, and hooks of parameters."""
    hooks = [codes_of(hook) for p in owned if p._backward_hooks for hook in p._backward_hooks.values()]
    return call.code, unrolled.stop_gradient, type(unrolled.backward), *hooks


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
