"""Compute the derivative along a line, by the unrolled loss and by differences of real steps."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..evaluation.precision import length
from ..proof.real_steps import Around, Shift
from .differentiated import Inputs

# A small slope needs longer steps. Adam's first step from empty state bends where |g| is about eps, and a step longer
# than the bend does not see it: that needs the shortest which rounding allows.
_LENGTHS = (4, 8, 16, 32, 2, 1, 1 / 2, *(1 / 8**n for n in range(1, 8)))


@dataclass(frozen=True)
class Slope:
    """The derivative along one direction, computed in two ways.

    Attributes:
        surrogate: the derivative of the unrolled loss.
        difference: the derivative by differences of real optimizer steps.
        uncertainty: the absolute error of ``difference``: rounding and, in ``Line.sharpest``, spread over step lengths.
        allowed: the error relative to ``difference`` that is allowed in addition to three times the uncertainty.
    """

    surrogate: float
    difference: float
    uncertainty: float
    allowed: float = 1e-3

    @property
    def conclusive(self) -> bool:
        """Return whether ``difference`` is precise enough for a comparison."""
        return 3 * self.uncertainty <= 0.1 * max(abs(self.difference), abs(self.surrogate))

    @property
    def agrees(self) -> bool:
        """Return whether the comparison is conclusive and the two derivatives agree within the tolerance."""
        return self.conclusive and self.apart <= self.tolerance

    @property
    def apart(self) -> float:
        """Return how far apart the two derivatives are."""
        return abs(self.surrogate - self.difference)

    @property
    def tolerance(self) -> float:
        """Return how far apart they may be: 3 · uncertainty + allowed · |difference|."""
        return 3 * self.uncertainty + self.allowed * abs(self.difference)


class Line:
    """A line along which the inputs are moved.

    Args:
        inputs: the inputs to move.
        way: the direction, of length 1.
        real: computes the value of real steps, in a context that moves the inputs and another around each loss.
        slope: the derivative of the unrolled loss at the start of the line.
        value: the value at the start of the line.
        unit: the machine epsilon.
    """

    def __init__(
        self,
        inputs: Inputs,
        way: Sequence[Tensor],
        real: Callable[[Shift, Around], float],
        slope: float,
        value: float,
        unit: float,
    ) -> None:
        self.slope = slope
        self._inputs = inputs
        self._way = way
        self._real = real
        # The best relative precision of a central difference, where rounding and curvature contribute alike.
        self._best = unit ** (1 / 3)
        self._noise = 2 * unit * max(abs(value), 1.0)
        # A step is small relative to the inputs, and changes the value by a small part of itself.
        size = min(max(length(inputs.tensors), 1.0), max(abs(value), 1.0) / max(abs(slope), 1e-12))
        self._step = size * self._best

    def value(self, steps: float, around: Around = nullcontext) -> float:
        """Return the value of real steps with the inputs moved by ``steps`` step lengths."""
        return self._real(lambda: self._inputs.shifted(self._way, steps * self._step), around)

    def slope_of(self, steps: float, around: Callable[[], Around] = lambda: nullcontext) -> float:
        """Return a central difference over ``steps`` step lengths; ``around`` makes the contexts of each run."""
        return (self.value(steps, around()) - self.value(-steps, around())) / (2 * steps * self._step)

    def at_once(self) -> Slope:
        """Return the derivative by one central difference, without a search for the best step length."""
        # K steps round more often than one evaluation, so the length is greater than the best one for that.
        near = self.slope_of(4)
        return Slope(self.slope, near, self._uncertainty(near, 4), allowed=0.0)

    def settled(self, found: Slope) -> bool:
        """Return whether the derivatives agree and the difference is precise; a coarse one agrees with too much."""
        return found.agrees and found.uncertainty <= 2 * self._best * abs(found.difference)

    def sharpest(self, allowed: float, around: Callable[[], Around] = lambda: nullcontext) -> Slope:
        """Return the first difference over several step lengths that is settled, or what they say together."""
        central: dict[float, float] = {}
        tried: dict[float, Slope] = {}
        for n in _LENGTHS:
            if tried and self._rounding(n) > together(tried).uncertainty:
                continue
            for m in {n, 2 * n} - set(central):
                central[m] = self.slope_of(m, around)
            extrapolated = (4 * central[n] - central[2 * n]) / 3
            spread = abs(central[n] - extrapolated)
            tried[n] = Slope(self.slope, extrapolated, self._uncertainty(extrapolated, n, spread), allowed)
            if self.settled(tried[n]):
                return tried[n]
        return together(tried)

    def _uncertainty(self, difference: float, steps: float, spread: float = 0.0) -> float:
        if not math.isfinite(difference):
            return math.inf
        # The spread alone is not enough, because two noisy numbers may be close by chance.
        return max(spread, self._best * abs(difference)) + self._rounding(steps)

    def _rounding(self, steps: float) -> float:
        return self._noise / (steps * self._step)


def together(tried: dict[float, Slope]) -> Slope:
    """Return the most precise of the differences, by step length, that no shorter step refutes.

    A derivative is the limit of short steps. Where a shorter one says something else, and by more than the errors of
    both, the longer one has missed a bend, however precise it looks; the shorter one is then as uncertain as they are
    apart, until a still shorter one confirms it.
    """
    longest, *shorter = sorted(tried, reverse=True)
    best = tried[longest]
    for n in shorter:
        found, apart = tried[n], abs(tried[n].difference - best.difference)
        if apart > 3 * (found.uncertainty + best.uncertainty):
            best = replace(found, uncertainty=max(found.uncertainty, apart))
        elif found.uncertainty < best.uncertainty:
            best = found
    return best


def directions(gradient: list[Tensor]) -> list[list[Tensor]]:
    """Return the direction of the gradient and that of a random half of it, whose slopes are well above rounding.

    The second also moves the tensors that get no gradient at all, by a length of 1: that may be what is wrong.
    """
    generators = [torch.Generator().manual_seed(0) for _ in gradient]
    half = [
        torch.rand(g.shape, generator=one, dtype=torch.float32).to(g.device) < 0.5
        for g, one in zip(gradient, generators, strict=True)
    ]
    candidates = [gradient, [g * h for g, h in zip(gradient, half, strict=True)]]
    lengths = [length(d) for d in candidates]
    ways = [[t / n for t in d] for d, n in zip(candidates, lengths, strict=True) if n > 0]
    if ways and (without := [i for i, g in enumerate(gradient) if not g.any()]):
        ways = [ways[0], list(ways[-1])]
        size = sum(gradient[i].numel() for i in without) ** 0.5
        for i in without:
            ways[1][i] = (half[i].to(gradient[i]) * 2 - 1) / size
    return ways


def along(gradient: Sequence[Tensor], way: Sequence[Tensor]) -> float:
    """Return the derivative along ``way``, which is its dot product with the gradient: Σ Re(ḡ d)."""
    # The gradient by a complex number z is dL/d(Re z) + i dL/d(Im z).
    return sum((g.conj() * d).sum().real.item() for g, d in zip(gradient, way, strict=True))
