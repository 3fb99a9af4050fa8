"""The loss that a call returns: a value, joined to the generator's graph by gradients that are computed already."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..call.categories import FreshState, PartialDetach, SecondTermMissing
from ..call.names import Names
from ..evaluation.detachments import Cut
from ..evaluation.gradients import GIVEN_BACK
from ..messages import users_line
from ..torch_private import after_backward
from .sensitivity import Sensitivity

_OUTSIZED = 2.0


def check_terms(found: Sensitivity, given: Sequence[Tensor], stop_gradient: bool, names: Names) -> None:
    """Raise for a result that depends on no generator, and warn of one that lacks the second term of Eq. 12."""
    reached = found.surrogates or any(t.requires_grad for t, _ in found.pairs())
    if not (reached and (found.first_term or found.second_term)):
        batch = ", ".join(f"{tuple(t.shape)} requires_grad={t.requires_grad}" for t in given)
        raise ValueError(
            f"Neither loss depends on {names.asker}: the batch is [{batch}]. {names.remedy}, without "
            "detach() or no_grad(); for the value alone, call under torch.no_grad()."
        )
    if not (found.second_term or stop_gradient):
        if found.through_d:
            cause = (
                f"{names.player_loss} does not depend on {names.asker}, so the second term of Eq. 12 is missing. Is "
                "fake detached inside it, or by resample? Use unroll_wrap.detach(fake) there, or pass "
                "stop_gradient=True if that is what you want."
            )
        else:
            cause = (
                f"{names.loss} does not depend on {names.player} that is unrolled, so no derivative passes through its "
                f"steps, and the second term of Eq. 12 is missing. Does {names.loss} ask another network, or detach "
                f"what {names.player} returns? Let it use {names.player} that it is given, or pass steps=0 if the "
                "other network is meant."
            )
        warnings.warn(cause, SecondTermMissing, stacklevel=users_line())


def warn_of(cuts: Mapping[str, Cut], fresh: str, outsized: float) -> None:
    """Warn of a result that is correct, but may not be what the user meant.

    ``fresh`` is a note on optimizers without state. ``outsized`` is the length of the first step's part of the
    gradient, divided by the length of the rest.
    """
    if cuts:
        places = "; ".join(f"{loss} at {cut.line}" for loss, cut in cuts.items())
        remedies = ". ".join(dict.fromkeys(cut.remedy for cut in cuts.values()))
        warnings.warn(
            f"A loss detaches a part of what it returns: {places}. {remedies}. As it is, no derivative passes there, "
            "neither in training nor in the unroll. If you mean that, call "
            'warnings.simplefilter("ignore", unroll_wrap.PartialDetach).',
            PartialDetach,
            stacklevel=users_line(),
        )
    if fresh and outsized > _OUTSIZED:
        warnings.warn(
            f"{fresh} Here that step makes up {outsized:.3g} times the rest of the gradient. A "
            "callable such as partial(Adam, ...) starts so in every call: pass the live optimizer in its place.",
            FreshState,
            stacklevel=users_line(),
        )


def hand_over(value: Tensor, sensitivity: Sensitivity) -> Tensor:
    """Return a scalar equal to ``value`` whose backward pass gives each of the user's tensors its gradient."""
    pairs = list(sensitivity.pairs())
    if any(t.numel() and not t.untyped_storage().size() for t, _ in pairs):
        raise ValueError(GIVEN_BACK)
    surrogates = sensitivity.surrogates
    grads = [*(g for _, g in pairs), *(torch.ones_like(s) for s in surrogates)]
    _refuse_nan(sensitivity.edge)
    return _HandOver.apply(value, grads, *(t for t, _ in pairs), *surrogates)  # type: ignore[no-any-return]


def _refuse_nan(edge: Sequence[Any]) -> None:
    """Raise at the end of the caller's backward pass if gradients that enter a captured graph are not finite."""
    totals: list[Tensor] = []

    def check() -> None:
        finite = torch.stack([t.to(totals[0]) for t in totals]).isfinite().all()
        totals.clear()
        if not finite:
            raise ValueError(
                "The losses are finite, and the gradient of an unrolled one by a tensor that it captures is not. Pass "
                "the tensor as an argument, as in unrolled(real, fake), to be told at which operator."
            )

    def note(found: Sequence[Tensor | None], of: Any) -> None:  # noqa: ARG001
        if not totals:
            after_backward(check)
        totals.extend(g.detach().abs().max() for g in found if g is not None and g.numel())

    for node in edge:
        node.register_hook(note)


class _HandOver(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, grads: list[Tensor], *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*grads, *tensors)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        n = len(ctx.saved_tensors) // 2
        grads, tensors = ctx.saved_tensors[:n], ctx.saved_tensors[n:]
        if torch.is_grad_enabled():
            # The graph of the sweep is gone, so a second derivative would omit how these gradients change. What scales
            # the loss may be differentiated.
            grads = [_Once.apply(g, *tensors) for g in grads]
        scale = grad_output.reshape(())
        return None, None, *(g * scale.to(g.device, g.dtype) for g in grads)


class _Once(torch.autograd.Function):
    """A gradient that depends on ``tensors``, and raises when it is differentiated."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, *tensors: Tensor) -> Tensor:
        return grad.clone()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        raise RuntimeError(
            "An unrolled loss can be differentiated once; this differentiates its gradient. Compute penalties on "
            "gradients from other losses, or call backward() without create_graph=True."
        )
