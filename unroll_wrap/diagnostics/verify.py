"""Proof in the user's own loop: the unrolled loss against real optimizer steps and differences of them."""

from dataclasses import replace
from typing import Any

from ..evaluation.precision import length
from ..loss import UnrolledGeneratorLoss
from ..optimizers.fresh import FRESH, adaptive_and_fresh
from .comparison import Comparison
from .examined import Examined, Wrt, check_examined
from .in_double import in_double, may_be_double
from .verification import Verification


def verify(unrolled: UnrolledGeneratorLoss, *batch: Any, wrt: Wrt = None, **options: Any) -> Verification:
    """Compare a call with K real optimizer steps, and its gradient with differences of them.

    The real steps are taken on your own objects, by their own ``step()``, and everything is put back bit for bit.
    Takes one call and 5 times K real steps if plain differences agree, some 15 times K where a ReLU makes real steps
    jump, up to 90 times K where something is wrong or the derivative is tiny, and as much again in float64, on the
    same objects, where float32 cannot tell: pass a few samples. What a hook of yours does beyond tensors, such as to
    print or to send, happens as often.

    Args:
        unrolled: the loss.
        *batch: as for a call.
        wrt: what to differentiate with respect to. None takes the tensors that require grad in the batch, or among
            what the given losses capture.
        **options: as for a call.

    Returns:
        What was found. It is true if all agrees, and ``print`` shows it.

    Raises:
        ValueError: the loss averages over several processes, or takes batches of one size only.
    """
    check_examined(unrolled, "verify", batch)
    if unrolled.average_gradients is not False:
        raise ValueError(
            "verify compares with real steps of one process, and average_gradients makes those of several. Verify a "
            "loss without it."
        )
    try:
        unrolled.parts()
    except ValueError as error:
        return Verification(_NAN, _NAN, 0.0, problems=[str(error)])
    comparison = Comparison(Examined(unrolled, batch, wrt, options))
    found = comparison.outcome()
    examined = comparison.examined
    if comparison.differ and may_be_double([*examined.owned, *examined.inputs.tensors]):
        return _sharper(comparison, found)
    return replace(found, problems=comparison.problems(found))


_NAN = float("nan")


def _sharper(coarse: Comparison, found: Verification) -> Verification:
    """The same on the same objects in float64, where rounding takes the differences apart and nothing else may."""
    batch, wrt, options = coarse.examined.given
    try:
        with in_double(coarse.examined.unrolled, batch, wrt, options) as twin:
            sharp = Comparison(Examined(twin, batch, wrt, options))
            again = sharp.outcome()
            problems, exact = sharp.problems(again), [g.cpu() for g in sharp.gradient]
    except (RuntimeError, TypeError, ValueError) as error:
        notes = [*found.notes, f"In float64 the losses fail: {error}"]
        return replace(found, problems=coarse.problems(found), notes=notes)
    notes = [
        *found.notes,
        "In float32 differences of real steps tell nothing here. These are in float64, on the same objects.",
    ]
    if fresh := adaptive_and_fresh(coarse.examined.unrolled.parts()[1]):
        notes.append(f"{' and '.join(fresh)} {FRESH}")
    if not problems:
        mine = [g.cpu().double() for g in coarse.gradient]
        apart = length([a - b for a, b in zip(mine, exact, strict=True)]) / max(length(exact), 1e-300)
        rounding = coarse.rounding()
        told = f"In float32 the derivative is {apart:.1e} of itself from that, and rounding moves it by {rounding:.1e}."
        if apart <= max(1e-2, 10 * rounding):
            notes.append(told)
        else:
            problems = [f"In float64 the derivative is that of real steps. {told} An operator is wrong in float32."]
    return replace(found, slopes=again.slopes, cuts=again.cuts, notes=notes, problems=problems)
