"""Check the unrolled loss in the user's own loop against real optimizer steps and differences of them."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..evaluation.precision import length
from ..loss import UnrolledLoss
from ..optimizers.fresh import note_on_fresh
from .comparison import Comparison
from .examined import Examined, Wrt, check_examined
from .in_double import in_double, may_be_double
from .progress import counting
from .verification import Verification


def verify(unrolled: UnrolledLoss, /, *batch: Any, wrt: Wrt = None, **options: Any) -> Verification:
    """Compare a call with the value L of K real steps, and its gradient g with ⟨g, d⟩ = (L(x + hd) - L(x - hd)) / 2h.

    The real steps are taken on your own objects, by their own ``step()``, and everything is put back bit for bit.
    This takes one call and 5·K real steps if plain differences agree, about 15·K where a ReLU makes real steps jump,
    and up to 130·K where something is wrong or the derivative is tiny. Where float32 is too coarse, all of this is
    repeated in float64. Your hooks run in each of these steps. A terminal shows how many steps have been taken. Pass
    only a few samples.

    Args:
        unrolled: the loss.
        *batch: the positional arguments of a call, such as real and fake.
        wrt: the tensors x to differentiate with respect to. None takes those that require grad in the batch, or among
            what the losses capture.
        **options: the keyword arguments of a call.

    Returns:
        The findings, which are true if all agrees, and which you can ``print``.

    Raises:
        ValueError: the loss averages over several processes, or takes batches of one size only.
        RuntimeError: ``torch.no_grad()`` is on.

    Examples:
        >>> G, D = torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)
        >>> opt_D = torch.optim.SGD(D.parameters(), lr=0.1)
        >>> unrolled = unroll_wrap.UnrolledGeneratorLoss(D, opt_D, *unroll_wrap.non_saturating, steps=3)
        >>> unroll_wrap.verify(unrolled, torch.randn(8, 2), G(torch.randn(8, 2))).passed
        True
    """
    check_examined(unrolled, "verify", batch, options)
    if unrolled.average_gradients is not False:
        raise ValueError(
            "verify compares with real steps of one process, and average_gradients makes those of several. Verify a "
            "loss without it."
        )
    try:
        unrolled.parts()
    except ValueError as error:
        return Verification(_NAN, _NAN, 0.0, problems=[str(error)])
    # As in a first call, the losses are watched, so that what they detach is told.
    unrolled = copy.copy(unrolled)
    unrolled._watched = {}
    examined = Examined(unrolled, batch, wrt, options)
    with counting("unroll_wrap.verify", f"runs of {examined.steps} real steps") as one_more:
        comparison = Comparison(examined, one_more)
        found = comparison.outcome()
        if (comparison.differ or comparison.doubtful) and may_be_double([*examined.owned, *examined.inputs.tensors]):
            return _sharper(comparison, found, one_more)
        return replace(found, problems=comparison.problems(found))


_NAN = float("nan")


def _sharper(coarse: Comparison, found: Verification, one_more: Callable[[], None]) -> Verification:
    """Repeat a comparison on the same objects in float64, which tells rounding from a wrong derivative."""
    batch, wrt, options = coarse.examined.given
    try:
        with in_double(coarse.examined.unrolled, batch, wrt, options) as twin:
            sharp = Comparison(Examined(twin, batch, wrt, options), one_more)
            again = sharp.outcome()
            problems, exact = sharp.problems(again), [g.cpu() for g in sharp.gradient]
    except (RuntimeError, TypeError, ValueError) as error:
        notes = [*found.notes, f"In float64 the losses fail: {error}"]
        return replace(found, problems=coarse.problems(found), notes=notes)
    notes = [
        *found.notes,
        "In float32 differences of real steps tell nothing here. These are in float64, on the same objects.",
    ]
    if fresh := note_on_fresh(coarse.examined.unrolled.parts()[1]):
        notes.append(fresh)
    if not problems:
        mine = [g.cpu().double() for g in coarse.gradient]
        apart = length([a - b for a, b in zip(mine, exact, strict=True)]) / max(length(exact), 1e-300)
        rounding = coarse.rounding()
        told = (
            f"That of the call, in float32, differs from it by {apart:.1e} of its length, and rounding moves it by "
            f"{rounding:.1e}."
        )
        if apart <= max(1e-2, 10 * rounding):
            notes.append(told)
        else:
            problems = [f"In float64 the derivative is that of real steps. {told} An operator is wrong in float32."]
    return replace(found, slopes=again.slopes, cuts=again.cuts, notes=notes, problems=problems)
