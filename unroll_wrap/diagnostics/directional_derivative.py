"""The derivative along a line, by the unrolled loss and by differences of real steps."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from ..evaluation.precision import length
from .differentiated import Inputs

Around = Callable[[str], AbstractContextManager[object]]
Shift = Callable[[], AbstractContextManager[object]]


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
        return self.conclusive and self.apart <= self.tolerance

    @property
    def apart(self) -> float:
        """How far they are from one another."""
        return abs(self.surrogate - self.difference)

    @property
    def tolerance(self) -> float:
        """How far they may be."""
        return 3 * self.uncertainty + self.allowed * abs(self.difference)


class Line:
    """The inputs moved in one direction.

    Args:
        inputs: what is moved.
        way: the direction, of length 1.
        real: the value of real steps; its first argument moves the inputs, its second surrounds each loss.
        slope: by the unrolled loss, where the line starts.
        value: there.
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
        # The cube root balances rounding and curvature in a central difference: what it is good for at best.
        self._best = unit ** (1 / 3)
        self._noise = 2 * unit * max(abs(value), 1.0)
        # A small part of the inputs, and one that moves the value by a small part of itself.
        size = min(max(length(inputs.tensors), 1.0), max(abs(value), 1.0) / max(abs(slope), 1e-12))
        self._step = size * self._best

    def value(self, steps: float, around: Around = nullcontext) -> float:
        """Of real steps, so many step lengths along."""
        return self._real(lambda: self._inputs.shifted(self._way, steps * self._step), around)

    def slope_of(self, steps: float, around: Callable[[], Around]) -> float:
        """A central difference, each run of it in a context of its own."""
        return (self.value(steps, around()) - self.value(-steps, around())) / (2 * steps * self._step)

    def at_once(self) -> Slope:
        """A central difference as it comes."""
        # K steps round more than once, so not the length that is best for one.
        near = (self.value(4) - self.value(-4)) / (8 * self._step)
        return Slope(self.slope, near, self._uncertainty(near, 4), allowed=0.0)

    def settled(self, found: Slope) -> bool:
        """Whether it agrees and nothing sharper need be known: a coarse difference agrees with too much."""
        return found.agrees and found.uncertainty <= 2 * self._best * abs(found.difference)

    def sharpest(self, allowed: float, around: Callable[[], Around]) -> Slope:
        """The best of some step lengths; no more of them than it takes to settle it.

        Args:
            allowed: see Slope.
            around: what surrounds the losses of one run.
        """
        central: dict[float, float] = {}
        tried: list[Slope] = []
        # A small slope asks for longer steps, what bends soon for shorter ones: the shortest are for Adam's first step,
        # which bends where a gradient is about eps.
        for n in (4, 8, 16, 32, 2, 1, 1 / 2, 1 / 8, 1 / 64, 1 / 512):
            if tried and self._rounding(n) > min(slope.uncertainty for slope in tried):
                continue
            for m in {n, 2 * n} - set(central):
                central[m] = self.slope_of(m, around)
            extrapolated = (4 * central[n] - central[2 * n]) / 3
            spread = abs(central[n] - extrapolated)
            tried.append(Slope(self.slope, extrapolated, self._uncertainty(extrapolated, n, spread), allowed))
            if self.settled(tried[-1]):
                return tried[-1]
        return min(tried, key=lambda slope: slope.uncertainty)

    def _uncertainty(self, difference: float, steps: float, spread: float = 0.0) -> float:
        if not math.isfinite(difference):
            return math.inf
        # Two noisy numbers may be close by chance.
        return max(spread, self._best * abs(difference)) + self._rounding(steps)

    def _rounding(self, steps: float) -> float:
        return self._noise / (steps * self._step)


def directions(gradient: list[Tensor]) -> list[list[Tensor]]:
    """The gradient's own direction, and that of a random half of it: both have slopes well above the rounding."""
    generators = [torch.Generator().manual_seed(0) for _ in gradient]
    half = [
        torch.rand(g.shape, generator=one, dtype=torch.float32).to(g.device) < 0.5
        for g, one in zip(gradient, generators, strict=True)
    ]
    candidates = [gradient, [g * h for g, h in zip(gradient, half, strict=True)]]
    lengths = [length(d) for d in candidates]
    return [[t / n for t in d] for d, n in zip(candidates, lengths, strict=True) if n > 0]


def along(gradient: Sequence[Tensor], way: Sequence[Tensor]) -> float:
    """The derivative in a direction."""
    return sum((g * d).sum().item() for g, d in zip(gradient, way, strict=True))
