"""Proof in the user's own loop: the unrolled loss against real optimizer steps and differences of them."""

import copy
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .backward import FiniteDifference, Truncate
from .cuts import Cuts, Diverged
from .inputs import NOTHING, Inputs
from .loss import SecondTermMissing, UnrolledGeneratorLoss
from .mistakes import check_examined
from .precision import length, precision
from .rehearsal import Rehearsal, held
from .replay import EveryRandomState

Shift = Callable[[], AbstractContextManager[object]]
Around = Callable[[str], AbstractContextManager[object]]


@dataclass(frozen=True)
class Slope:
    """The derivative along one direction.

    Attributes:
        surrogate: by the unrolled loss.
        difference: by differences of real optimizer steps.
        uncertainty: of the difference, from rounding and, unless it agrees at once, from the spread over step lengths.
        allowed: how far the two may be apart, relative to the difference, beside three times its uncertainty.
    """

    surrogate: float
    difference: float
    uncertainty: float
    allowed: float = 1e-3

    @property
    def conclusive(self) -> bool:
        """Whether the difference is sharp enough to say anything."""
        return 3 * self.uncertainty <= 0.1 * max(abs(self.difference), abs(self.surrogate))

    @property
    def agrees(self) -> bool:
        """Whether the two are the same as far as one can say."""
        apart = abs(self.surrogate - self.difference)
        return self.conclusive and apart <= 3 * self.uncertainty + self.allowed * abs(self.difference)


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

    def __str__(self) -> str:
        """A short report."""
        lines = [
            f"unroll_wrap.verify: {'passed' if self.passed else 'FAILED'}",
            f"  value       {self.value:.9g}, after real steps {self.real_value:.9g} "
            f"(apart {abs(self.value - self.real_value):.1e}, allowed {self.tolerance:.1e})",
        ]
        lines += [
            f"  derivative  {s.surrogate:.6g}, by differences {s.difference:.6g} ± {s.uncertainty:.1e}"
            for s in self.slopes
        ]
        for title, items in (("problem", self.problems), ("cut", self.cuts), ("note", self.notes)):
            lines += [f"  {title}: {item}" for item in items]
        return "\n".join(lines)


def verify(
    unrolled: UnrolledGeneratorLoss, *batch: Any, wrt: Sequence[Tensor] | Tensor | None = None, **options: Any
) -> Verification:
    """Compare a call with K real optimizer steps, its gradient with differences of them, and print a short report.

    Takes one call and 5 times K real steps if all is well, up to 60 times K if something is not: a few samples of each
    kind are enough. The discriminator, its optimizer and the random generators are left alone.

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
    steps, batches = unrolled.plan(batch, options.pop("steps", None), options.pop("resample", None))
    # Drawn once: a loader gives other batches the next time.
    drawn = [batches(k) for k in range(steps)]
    try:
        modules, _, owned = unrolled.parts()
    except ValueError as error:
        return Verification(_NAN, _NAN, 0.0, problems=[str(error)])
    inputs = Inputs(wrt, (d_loss, g_loss), batch, options, drawn, modules)
    notes, constant, allowed = _by_choice(unrolled, steps)
    rehearsal = Rehearsal(unrolled, d_loss, g_loss, inputs.batch, inputs.inner, inputs.kwargs, constant)
    random, cuts = EveryRandomState([*inputs.tensors, *owned]), Cuts()
    given: dict[str, Any] = {"d_loss": d_loss, "g_loss": g_loss, "steps": steps, **inputs.kwargs}
    given["resample"] = inputs.inner or None

    def surrogate(one: UnrolledGeneratorLoss = unrolled) -> Tensor:
        with random.replayed():
            return one(*inputs.batch, **given)

    def real(shifted: Shift = nullcontext, around: Around = _nothing) -> float:
        with random.replayed():
            return rehearsal.run(shifted, around)

    # First of all, and unguarded: what fails here fails in the user's training too.
    expected = real(around=cuts.watched)
    values = rehearsal.values
    unit = precision([*owned, *inputs.tensors])
    tolerance = 100 * unit * max(1.0, abs(expected)) * max(1, steps)
    report = partial(Verification, real_value=expected, tolerance=tolerance, notes=notes)
    if not inputs.tensors:
        return report(_NAN, problems=[NOTHING])
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loss = surrogate()
    except Exception as error:
        return report(_NAN, problems=[str(error)])
    problems = [str(w.message) for w in caught if issubclass(w.category, SecondTermMissing)]
    value, gradient = loss.item(), inputs.gradient(loss)
    ways = _directions(gradient)

    def slopes(around: Callable[[], Around]) -> list[Slope]:
        def at(way: Sequence[Tensor], distance: float) -> float:
            return real(lambda: inputs.shifted(way, distance), around())

        return [
            _slope(partial(at, way), _along(gradient, way), inputs.tensors, unit, expected, allowed) for way in ways
        ]

    found = slopes(lambda: _nothing)
    right = abs(value - expected) <= tolerance
    if right and found and all(s.agrees for s in found):
        return report(value, slopes=found, problems=problems)

    real()
    changed = _changed(values, rehearsal.values, tolerance if loss.is_cuda else 0.0)
    if changed or not right:
        return report(value, slopes=found, problems=[*problems, changed or _VALUE])
    if all(abs(s.difference) <= s.uncertainty for s in found):
        return report(value, slopes=found, problems=[*problems, _NO_EFFECT])
    with suppress(Diverged):
        constant_cuts = slopes(lambda: held(cuts))
        if cuts.found:
            found = constant_cuts
    if not all(s.agrees for s in found):
        problems.append(_why(surrogate, unrolled, inputs, ways, found))
    return report(value, slopes=found, problems=problems, cuts=cuts.found)


_NAN = float("nan")
_VALUE = "The value is not that of real steps. Please report this, with optimizer and discriminator."
_NO_EFFECT = (
    "The real steps do not depend on what the derivative is taken for. Leave wrt out: the fake that was passed is then "
    "moved itself, which no change of the generator does any more."
)


def _nothing(name: str) -> AbstractContextManager[object]:
    return nullcontext()


def _by_choice(unrolled: UnrolledGeneratorLoss, steps: int) -> tuple[list[str], int, float]:
    """What the user has chosen to leave out: notes, the number of constant steps, the error that is allowed."""
    if unrolled.stop_gradient:
        return ["stop_gradient=True: all steps count as constant, in the differences too."], steps, 1e-3
    notes, backward, constant = [], unrolled.backward, 0
    if isinstance(backward, Truncate):
        constant = max(0, steps - backward.steps)
        notes.append(f"{backward}: {constant} of {steps} steps count as constant, in the differences too.")
        backward = backward.backward
    if isinstance(backward, FiniteDifference):
        notes.append(f"{backward} is an approximation: a hundredth is allowed.")
    return notes, constant, 1e-2 if isinstance(backward, FiniteDifference) else 1e-3


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
    surrogate: Callable[..., Tensor],
    unrolled: UnrolledGeneratorLoss,
    inputs: Inputs,
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
            gradient = inputs.gradient(surrogate(one))
            if all(
                replace(s, surrogate=_along(gradient, way), allowed=5e-3).agrees
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


def _directions(gradient: list[Tensor]) -> list[list[Tensor]]:
    """The gradient's own direction, and that of a random half of it: both have slopes well above the rounding."""
    half = [torch.rand(g.shape, generator=torch.Generator().manual_seed(0)).to(g.device) < 0.5 for g in gradient]
    candidates = [gradient, [g * h for g, h in zip(gradient, half, strict=True)]]
    lengths = [length(d) for d in candidates]
    return [[t / n for t in d] for d, n in zip(candidates, lengths, strict=True) if n > 0]


def _slope(
    at: Callable[[float], float],
    surrogate: float,
    inputs: list[Tensor],
    unit: float,
    value: float,
    allowed: float,
) -> Slope:
    """The best of some step lengths; more than one only where the first does not settle it."""
    # A small part of the inputs, and one that moves the value by a small part of itself.
    size = min(max(length(inputs), 1.0), max(abs(value), 1.0) / max(abs(surrogate), 1e-12))
    tried: list[Slope] = []
    # The cube root balances rounding and curvature. K steps round more than once, so the first length is longer; a
    # small slope asks for longer ones, the kinks of a ReLU for shorter ones.
    best = unit ** (1 / 3)
    for factor in (4, 1, 16, 1 / 4):
        h = size * best * factor
        behind, ahead = at(-h), at(h)
        near = (ahead - behind) / (2 * h)
        rounding = 2 * unit * max(abs(value), 1.0) / h
        # What a central difference is good for at best. If it agrees that well, nothing more need be known of it.
        first = Slope(surrogate, near, best * abs(near) + rounding, allowed=0.0)
        if not tried and first.agrees:
            return first
        third_order = (6 * ahead - at(2 * h) - 3 * value - 2 * behind) / (6 * h)
        # Two noisy numbers may be close by chance.
        spread = max(abs(near - third_order), best * abs(third_order))
        tried.append(Slope(surrogate, third_order, spread + rounding, allowed))
        # A coarse difference agrees with too much: one that is sharper may not.
        if tried[-1].agrees and spread <= 10 * best * abs(third_order):
            break
    return tried[-1] if tried[-1].agrees else min(tried, key=lambda slope: slope.uncertainty)


def _along(gradient: Sequence[Tensor], way: Sequence[Tensor]) -> float:
    return sum((g * d).sum().item() for g, d in zip(gradient, way, strict=True))
