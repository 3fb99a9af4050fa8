"""Proof in the user's own loop: the unrolled loss against real optimizer steps and differences of them."""

import copy
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor

from ..backward import FiniteDifference, Truncate
from ..call.mistakes import check_examined
from ..evaluation.precision import precision
from ..live.random_state import EveryState
from ..live.snapshot import Snapshot
from ..loss import SecondTermMissing, UnrolledGeneratorLoss
from ..proof.real_steps import RealSteps
from .cuts import Cuts, Diverged
from .differentiated import NOTHING, Inputs
from .directional_derivative import Around, Line, Shift, Slope, along, directions


@dataclass(frozen=True)
class Verification:
    """What ``verify`` found.

    Attributes:
        value: of the unrolled loss.
        real_value: ``g_loss`` after K real steps of the real optimizer.
        tolerance: how far apart rounding may take the two.
        slopes: the derivative along two directions.
        problems: what is wrong, in sentences; empty when all agrees.
        cuts: where a loss of the user's detaches what depends on D or on fake. The derivative does not pass there, as
            asked; these tensors are then held constant in the differences too.
        notes: what else a reader of the numbers should know.
    """

    value: float
    real_value: float
    tolerance: float
    slopes: list[Slope] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    cuts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether value and derivative agree."""
        return not self.problems

    def __bool__(self) -> bool:
        """The same, for ``assert verify(...)``."""
        return self.passed

    def __str__(self) -> str:
        """A short report."""
        lines = [
            f"unroll_wrap.verify: {'passed' if self.passed else 'FAILED'}",
            f"  value       {self.value:.9g}, after real steps {self.real_value:.9g} "
            f"(apart {abs(self.value - self.real_value):.1e}, allowed {self.tolerance:.1e})",
        ]
        lines += [
            f"  derivative  {s.surrogate:.6g}, by differences {s.difference:.6g} "
            f"(apart {s.apart:.1e}, allowed {s.tolerance:.1e})"
            for s in self.slopes
        ]
        for title, items in (("problem", self.problems), ("cut", self.cuts), ("note", self.notes)):
            lines += [f"  {title}: {item}" for item in items]
        return "\n".join(lines)


def verify(
    unrolled: UnrolledGeneratorLoss, *batch: Any, wrt: Sequence[Tensor] | Tensor | None = None, **options: Any
) -> Verification:
    """Compare a call with K real optimizer steps, its gradient with differences of them, and print a short report.

    Takes one call and 5 times K real steps if plain differences agree, some 15 times K where a ReLU makes real steps
    jump, up to 60 times K where something is wrong or the derivative is tiny: pass a few samples. D, its optimizer, the
    random generators and the buffers of a generator that the losses run are left alone.

    Args:
        unrolled: the loss.
        *batch: as for a call.
        wrt: what to differentiate with respect to. None takes the tensors that require grad in the batch, or among
            what the given losses capture.
        **options: as for a call.

    Returns:
        What was found.

    Raises:
        ValueError: the loss averages over several processes.
    """
    check_examined(unrolled, "verify", batch)
    if unrolled.average_gradients is not False:
        raise ValueError(
            "verify compares with real steps of one process, and average_gradients makes those of several. Verify a "
            "loss without it."
        )
    found = examined(unrolled, batch, wrt, options)
    print(found)
    return found


def examined(
    unrolled: UnrolledGeneratorLoss, batch: tuple[Any, ...], wrt: Any = None, options: dict[str, Any] | None = None
) -> Verification:
    """What ``verify`` prints, in silence."""
    options = dict(options or {})
    d_loss, g_loss = unrolled.losses(options.pop("d_loss", None), options.pop("g_loss", None))
    steps, batches = unrolled.plan(options.pop("steps", None), options.pop("resample", None))
    # Drawn once: a loader gives other batches the next time.
    drawn = [batches(k) for k in range(steps)] if batches else []
    try:
        modules, _, owned = unrolled.parts()
    except ValueError as error:
        return Verification(_NAN, _NAN, 0.0, problems=[str(error)])
    inputs = Inputs(wrt, (d_loss, g_loss), batch, options, drawn, modules)
    unit = precision([*owned, *inputs.tensors])
    notes, constant, allowed = _by_choice(unrolled, steps, unit)
    inner = inputs.inner or [inputs.batch] * steps
    steps_taken = RealSteps(unrolled, d_loss, g_loss, inputs.batch, inner, inputs.kwargs, constant)
    state = EveryState([*inputs.tensors, *owned], inputs.captured)
    given: dict[str, Any] = {"d_loss": d_loss, "g_loss": g_loss, "steps": steps, **inputs.kwargs}
    given["resample"] = inputs.inner or None

    def surrogate(one: UnrolledGeneratorLoss = unrolled) -> tuple[Tensor, list[Tensor]]:
        # What the losses keep of their own is put back after real steps too.
        with state.replayed(), Snapshot([d_loss, g_loss]):
            loss = one(*inputs.batch, **given)
            return loss.detach(), inputs.gradient(loss)

    def real(shifted: Shift = nullcontext, around: Around = nullcontext) -> float:
        with state.replayed():
            return steps_taken.run(shifted, around)

    # First of all, and unguarded: what fails here fails in the user's training too.
    expected = real()
    values = steps_taken.values
    tolerance = 100 * unit * max(1.0, abs(expected)) * max(1, steps)
    report = partial(Verification, real_value=expected, tolerance=tolerance, notes=notes)
    if not inputs.tensors:
        return report(_NAN, problems=[NOTHING])
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loss, gradient = surrogate()
    except Exception as error:
        return report(_NAN, problems=[str(error)])
    problems = [str(w.message) for w in caught if issubclass(w.category, SecondTermMissing)]

    value, ways = loss.item(), directions(gradient)
    lines = [Line(inputs, way, real, along(gradient, way), expected, unit) for way in ways]
    found = [line.at_once() for line in lines]
    right = abs(value - expected) <= tolerance
    if right and found and all(map(Line.settled, lines, found)):
        return report(value, slopes=found, problems=problems)

    cuts = Cuts()
    real(around=cuts.watched)
    noise = tolerance if loss.is_cuda else 0.0
    changed = _changed(values, steps_taken.values, noise)
    if changed or not right:
        return report(value, slopes=found, problems=[*problems, changed or _VALUE])
    if all(abs(s.difference) <= s.uncertainty for s in found):
        return report(value, slopes=found, problems=[*problems, _NO_EFFECT])
    try:
        found, where = [line.sharpest(allowed, cuts.held) for line in lines], _felt(cuts, lines[0], noise)
    except Diverged:
        found, where = [line.sharpest(allowed, lambda: nullcontext) for line in lines], []
    if not all(s.agrees for s in found):
        problems.append(_why(surrogate, unrolled, ways, found))
    return report(value, slopes=found, problems=problems, cuts=where)


_NAN = float("nan")
_VALUE = "The value is not that of real steps. Please report this, with optimizer and discriminator."
_NO_EFFECT = (
    "The real steps do not depend on what the derivative is taken for. Leave wrt out: the fake that was passed is then "
    "moved itself, which no change of the generator does any more."
)


def _felt(cuts: Cuts, line: Line, noise: float) -> list[str]:
    """The places without whose cuts real steps some way along would differ: what is cut is often never read."""

    def differs(*held: str) -> bool:
        return abs(line.value(32, cuts.held(held)) - free) > noise

    free, places = line.value(32, cuts.held(())), list(cuts.found)
    if not (places and differs(*places)):
        return []
    return [place for place in places if differs(place)] or places


def _by_choice(unrolled: UnrolledGeneratorLoss, steps: int, unit: float) -> tuple[list[str], int, float]:
    """What the user has chosen to leave out: notes, the number of constant steps, the error that is allowed."""
    # A difference in float64 tells a thousandth, which is what one operator that is off by a hundredth may come to.
    exact = min(1e-3, 10 * unit ** (1 / 3))
    if unrolled.stop_gradient:
        return ["stop_gradient=True: all steps count as constant, in the differences too."], steps, exact
    notes, backward, constant = [], unrolled.backward, 0
    if isinstance(backward, Truncate):
        constant = max(0, steps - backward.steps)
        notes.append(f"{backward}: {constant} of {steps} steps count as constant, in the differences too.")
        backward = backward.backward
    if isinstance(backward, FiniteDifference):
        notes.append(f"{backward} is an approximation: a hundredth is allowed.")
    return notes, constant, 1e-2 if isinstance(backward, FiniteDifference) else exact


def _changed(first: list[tuple[str, float]], again: list[tuple[str, float]], tolerance: float) -> str | None:
    for (name, one), (_, other) in zip(first, again, strict=True):
        if not abs(one - other) <= tolerance:
            return (
                f"{name} is {one:.9g} and, once more from the same state, {other:.9g}: it changes something that it "
                "depends on, or draws from a generator of its own. Guard the change with "
                "unroll_wrap.is_unrolling(), and draw with torch."
            )
    return None


def _why(
    surrogate: Callable[..., tuple[Tensor, list[Tensor]]],
    unrolled: UnrolledGeneratorLoss,
    ways: list[list[Tensor]],
    slopes: list[Slope],
) -> str:
    """Why slopes do not agree: whether first-order gradients alone would give the right ones."""
    if not all(s.conclusive for s in slopes):
        return "The differences are too coarse to say anything. Verify in float64: D.double(), G.double()."
    if not isinstance(unrolled.backward, FiniteDifference):
        one, backward = copy.copy(unrolled), unrolled.backward
        quotient = FiniteDifference(central=True)
        one.backward = Truncate(backward.steps, quotient) if isinstance(backward, Truncate) else quotient
        with suppress(RuntimeError):
            _, gradient = surrogate(one)
            if all(
                replace(s, surrogate=along(gradient, way), allowed=5e-3).agrees
                for s, way in zip(slopes, ways, strict=True)
            ):
                return (
                    "The derivative is not that of real steps, and with backward=FiniteDifference() it is: an operator "
                    "in d_loss has a wrong second derivative, or none. Replace it, or pass that backward."
                )
    return (
        "The derivative is not that of real steps. A torch.autograd.Function in a loss may have a wrong backward; if "
        "there is none, please report this, with optimizer and discriminator."
    )
