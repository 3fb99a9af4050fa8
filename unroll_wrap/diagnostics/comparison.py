"""Compare a call with K real steps of the live objects, and its gradient with differences of such steps."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from ..backward import FiniteDifference, Truncate
from ..call.categories import LogitsExpected, PartialDetach, SecondTermMissing
from ..call.modes import asleep
from ..evaluation.loss_errors import sizes_named
from ..evaluation.precision import length, precision, rounded
from ..loss import UnrolledLoss
from ..optimizers.family import family
from ..optimizers.fresh import note_on_fresh
from ..proof.real_rounds import real_steps
from ..proof.real_steps import Around, Shift
from .causes import UNMOVED, VALUE, cause_of, changed, old_graph
from .cuts import Cuts, Diverged
from .differentiated import NOTHING
from .directional_derivative import Line, along, directions
from .examined import Examined
from .verification import Verification

_CONSTANT = (
    "A loss computes with something that is constant for the derivative and not for real steps, and a call cannot tell "
    "you: a number that was read from a tensor, or a copy outside of torch. Compute it with tensors. If it is meant to "
    "be constant, detach() a tensor, of which a call warns. It is this:"
)


class Comparison:
    """The comparison of one call, ``examined``, with real steps that start from the same state."""

    def __init__(self, examined: Examined, one_more: Callable[[], None] = lambda: None) -> None:
        self.examined = examined
        self._one_more = one_more  # Called after each run of K real steps.
        self.gradient: list[Tensor] = []  # The gradient of the call, once ``outcome`` has computed it.
        self.ways: list[list[Tensor]] = []  # The directions along which ``outcome`` has compared the gradient.
        self.differ = False  # True if ``outcome`` has found that the value agrees and a derivative does not.
        # True if its differences are coarse, and an optimizer's empty state may have a bend in its first step.
        self.doubtful = False
        self._unit = precision([*examined.owned, *examined.inputs.tensors, *_moments(examined)])
        self._notes, constant, self._allowed = _by_choice(examined.unrolled, examined.steps, self._unit)
        if not examined.steps:
            self._notes.append("K is 0, so there are no steps to verify. Pass steps=5, say.")
        if layers := asleep(examined.unrolled.parts()[0]):
            self._notes.append(
                f"D runs {layers} in eval mode, here and in the real steps. If D trains otherwise, call D.train()."
            )
        inputs = examined.inputs
        inner = inputs.inner or [inputs.batch] * examined.steps
        self._taken = real_steps(
            examined.unrolled, examined.d_loss, examined.g_loss, inputs.batch, inner, inputs.kwargs, constant
        )

    def real(self, shifted: Shift = nullcontext, around: Around = nullcontext) -> float:
        """Return the value after real steps; ``RealSteps.run`` describes the arguments."""
        with self.examined.state.replayed(), sizes_named(self.examined.inputs.batch):
            value = self._taken.run(shifted, around)
        self._one_more()
        return value

    def outcome(self) -> Verification:
        """Return all findings except the cause of a difference between derivatives."""
        inputs = self.examined.inputs
        # The real steps come first and no error is caught, because it would occur in the user's training too.
        expected = self.real()
        values = self._taken.values
        tolerance = 100 * self._unit * max(1.0, abs(expected)) * max(1, self.examined.steps)
        report = partial(Verification, real_value=expected, tolerance=tolerance, notes=self._notes)
        if not inputs.tensors:
            return report(float("nan"), problems=[NOTHING])
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                loss, _, self.gradient = self.examined.run()
        except Exception as error:
            return report(float("nan"), problems=[str(error)])
        problems = [str(w.message) for w in caught if issubclass(w.category, SecondTermMissing)]
        logits = [str(w.message) for w in caught if issubclass(w.category, LogitsExpected)]
        detached = [str(w.message) for w in caught if issubclass(w.category, PartialDetach)]

        if old := self.old_fake(self.gradient):
            return report(loss.item(), problems=[*problems, old])
        value, self.ways = loss.item(), directions(self.gradient)
        lines = [Line(inputs, w, self.real, along(self.gradient, w), expected, self._unit) for w in self.ways]
        found = [line.at_once() for line in lines]
        right = abs(value - expected) <= tolerance
        if right and found and all(map(Line.settled, lines, found)):
            return report(value, slopes=found, problems=problems, notes=[*self._notes, *logits, *detached])

        cuts = Cuts()
        self.real(around=cuts.watched)
        noise = tolerance if loss.is_cuda else 0.0
        what = changed(values, self._taken.values, noise)
        if what or not right:
            return report(value, slopes=found, problems=[*problems, what or VALUE])
        if all(abs(s.difference) <= s.uncertainty for s in found):
            return report(value, slopes=found, problems=[*problems, UNMOVED])
        try:
            found, felt = [line.sharpest(self._allowed, cuts.held) for line in lines], _felt(cuts, lines[0], noise)
        except Diverged:
            found, felt = [line.sharpest(self._allowed) for line in lines], {}
        self.differ = not all(s.agrees for s in found)
        if not all(map(Line.settled, lines, found)):
            self.doubtful = bool(note_on_fresh(self.examined.unrolled.parts()[1]))
        problems += [f"{_CONSTANT} {text}." for place, text in felt.items() if cuts.untold(place, "".join(detached))]
        notes = [*self._notes, *logits, *([] if felt else detached)]
        return report(value, slopes=found, problems=problems, cuts=list(felt.values()), notes=notes)

    def old_fake(self, gradient: Sequence[Tensor]) -> str | None:
        """Return a message if a call's gradient shows that the losses use another fake than was passed, or None."""
        inputs = self.examined.inputs
        if inputs.unused(gradient):
            return old_graph(self.real, [])
        return None if inputs.chosen or any(g.any() for g in gradient) else old_graph(self.real, inputs.tensors)

    def problems(self, found: Verification) -> list[str]:
        """Return the problems of an outcome, and the cause if derivatives differ."""
        cause = [cause_of(self.examined, self.real, self.ways, found.slopes)] if self.differ else []
        return [*found.problems, *cause]

    def rounding(self) -> float:
        """Return how far the gradient moves, relative to its length, if parameters and inputs change by rounding."""
        generator, moved = torch.Generator().manual_seed(0), [0.0]
        tensors = [*self.examined.owned, *self.examined.inputs.tensors]
        for _ in range(3):
            with rounded(tensors, self._unit, generator):
                _, _, gradient = self.examined.quietly()
                moved.append(length([a - b for a, b in zip(gradient, self.gradient, strict=True)]))
        return max(moved) / max(length(self.gradient), 1e-300)


def _moments(examined: Examined) -> list[Tensor]:
    """Return the optimizers' state of a parameter's shape. Some compute in float32 whatever the parameters are."""
    return [
        t
        for optimizer in examined.unrolled.parts()[1]
        for one in family(optimizer)
        for p, state in getattr(one, "state", {}).items()
        if isinstance(p, Tensor) and isinstance(state, dict)
        for t in state.values()
        if isinstance(t, Tensor) and t.is_floating_point() and t.dim() and t.shape == p.shape
    ]


def _felt(cuts: Cuts, line: Line, noise: float) -> dict[str, str]:
    """Return the cuts that change the derivative, with both derivatives. The results of many cuts are never used."""

    def slope(*held: str) -> float:
        return line.slope_of(32, lambda: cuts.held(held))

    def differs(*held: str) -> bool:
        return abs(line.value(32, cuts.held(held)) - free) > noise

    free, places = line.value(32, cuts.held(())), list(cuts.found)
    if not (places and differs(*places)):
        return {}
    felt = [place for place in places if differs(place)] or places
    as_asked = slope(*places)
    return {
        p: f"{p}. Along the first direction the derivative is {as_asked:.3g} with this cut, and would be "
        f"{slope(*(q for q in places if q != p)):.3g} without it"
        for p in felt
    }


def _by_choice(unrolled: UnrolledLoss, steps: int, unit: float) -> tuple[list[str], int, float]:
    """Return what the user's options imply: notes, the number of constant steps, and the relative error allowed."""
    # A difference in float64 resolves an error of 1e-3, and an operator that is off by 1e-2 may cause no more.
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
