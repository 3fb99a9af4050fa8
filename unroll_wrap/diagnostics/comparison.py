"""A call beside K real steps of the live objects, and its gradient beside differences of them."""

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from ..backward import FiniteDifference, Truncate
from ..call.categories import SecondTermMissing
from ..evaluation.precision import length, precision
from ..live.snapshot import Snapshot
from ..loss import UnrolledGeneratorLoss
from ..proof.real_steps import RealSteps
from .causes import UNMOVED, VALUE, cause_of, changed, old_graph
from .cuts import Cuts, Diverged
from .differentiated import NOTHING
from .directional_derivative import Around, Line, Shift, along, directions
from .examined import Examined
from .sizes import sizes_named
from .verification import Verification


class Comparison:
    """What real steps come to, from where the call starts.

    Args:
        examined: the call.

    Attributes:
        examined: as given.
        gradient: of the call.
        ways: along which it was compared.
        differ: whether the value is right and a derivative is not, as far as can be said here.
    """

    def __init__(self, examined: Examined) -> None:
        self.examined = examined
        self.gradient: list[Tensor] = []
        self.ways: list[list[Tensor]] = []
        self.differ = False
        self._unit = precision([*examined.owned, *examined.inputs.tensors])
        self._notes, constant, self._allowed = _by_choice(examined.unrolled, examined.steps, self._unit)
        inputs = examined.inputs
        inner = inputs.inner or [inputs.batch] * examined.steps
        self._taken = RealSteps(
            examined.unrolled, examined.d_loss, examined.g_loss, inputs.batch, inner, inputs.kwargs, constant
        )

    def real(self, shifted: Shift = nullcontext, around: Around = nullcontext) -> float:
        """The value after real steps, see RealSteps."""
        with self.examined.state.replayed(), sizes_named(self.examined.inputs.batch):
            return self._taken.run(shifted, around)

    def outcome(self) -> Verification:
        """What there is to say without a cause."""
        inputs = self.examined.inputs
        # First of all, and unguarded: what fails here fails in the user's training too.
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

        if old := self.old_fake(self.gradient):
            return report(loss.item(), problems=[*problems, old])
        value, self.ways = loss.item(), directions(self.gradient)
        lines = [Line(inputs, w, self.real, along(self.gradient, w), expected, self._unit) for w in self.ways]
        found = [line.at_once() for line in lines]
        right = abs(value - expected) <= tolerance
        if right and found and all(map(Line.settled, lines, found)):
            return report(value, slopes=found, problems=problems)

        cuts = Cuts()
        self.real(around=cuts.watched)
        noise = tolerance if loss.is_cuda else 0.0
        what = changed(values, self._taken.values, noise)
        if what or not right:
            return report(value, slopes=found, problems=[*problems, what or VALUE])
        if all(abs(s.difference) <= s.uncertainty for s in found):
            return report(value, slopes=found, problems=[*problems, UNMOVED])
        try:
            found, where = [line.sharpest(self._allowed, cuts.held) for line in lines], _felt(cuts, lines[0], noise)
        except Diverged:
            found, where = [line.sharpest(self._allowed, lambda: nullcontext) for line in lines], []
        self.differ = not all(s.agrees for s in found)
        return report(value, slopes=found, problems=problems, cuts=where)

    def old_fake(self, gradient: Sequence[Tensor]) -> str | None:
        """What the losses use in the place of their arguments, as the gradient of a call shows."""
        inputs = self.examined.inputs
        if inputs.unused(gradient):
            return old_graph(self.real, [])
        return None if inputs.chosen or any(g.any() for g in gradient) else old_graph(self.real, inputs.tensors)

    def problems(self, found: Verification) -> list[str]:
        """Those of an outcome, and the cause if derivatives differ."""
        cause = [cause_of(self.examined, self.real, self.ways, found.slopes)] if self.differ else []
        return [*found.problems, *cause]

    def rounding(self) -> float:
        """How far the gradient goes, relative to its length, if parameters and inputs differ in their last bits."""
        generator, moved = torch.Generator().manual_seed(0), [0.0]
        tensors = [*self.examined.owned, *self.examined.inputs.tensors]
        for _ in range(3):
            with Snapshot(tensors):
                for t in tensors:
                    noise = torch.rand(t.shape, generator=generator).to(t) - 0.5
                    t.data.mul_(1 + 4 * self._unit * noise)
                _, _, gradient = self.examined.quietly()
                moved.append(length([a - b for a, b in zip(gradient, self.gradient, strict=True)]))
        return max(moved) / max(length(self.gradient), 1e-300)


def _felt(cuts: Cuts, line: Line, noise: float) -> list[str]:
    """The places without whose cuts the derivative would be another, with both: what is cut is often never read."""

    def slope(*held: str) -> float:
        return line.slope_of(32, lambda: cuts.held(held))

    def differs(*held: str) -> bool:
        return abs(line.value(32, cuts.held(held)) - free) > noise

    free, places = line.value(32, cuts.held(())), list(cuts.found)
    if not (places and differs(*places)):
        return []
    felt = [place for place in places if differs(place)] or places
    as_asked = slope(*places)
    return [
        f"{p}. The derivative is {as_asked:.3g}, and {slope(*_without(p, places)):.3g} without this cut" for p in felt
    ]


def _without(place: str, places: Sequence[str]) -> list[str]:
    return [p for p in places if p != place]


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
