"""What K steps will cost on this machine, from two short calls."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..backward import Compiled, Recompute, Truncate
from ..loss import UnrolledGeneratorLoss
from .examined import Examined, Wrt, check_examined
from .peak_memory import PeakMemory

# Seconds; what takes longer is timed once.
_SHORT = 0.5


@dataclass(frozen=True)
class Prediction:
    """T(K) = T(a) + (K - a) · dT and M(K) = M(a) + (K - a) · dM, one gradient of the unrolled loss.

    Attributes:
        steps: K.
        seconds: T(K).
        bytes: M(K), the most that tensors take at once beyond what is there before the call.
        seconds_per_step: dT.
        bytes_per_step: dM.
        measured: the two K that were measured, a and b.
    """

    steps: int
    seconds: float
    bytes: int
    seconds_per_step: float
    bytes_per_step: float
    measured: tuple[int, int]

    def __str__(self) -> str:
        """A short report."""
        a, b = self.measured
        return "\n".join([
            f"unroll_wrap.predict: K = {self.steps}, {self.seconds:.3g} s and {self.bytes / 1e6:.4g} MB a gradient",
            f"  a step more  {self.seconds_per_step:.3g} s and {self.bytes_per_step / 1e6:.4g} MB",
            f"  measured at  K = {a} and {b}",
        ])


def predict(
    unrolled: UnrolledGeneratorLoss,
    *batch: Any,
    steps: int | None = None,
    wrt: Wrt = None,
    **options: Any,
) -> Prediction:
    """Time and peak memory of ``unrolled(*batch, steps=steps)`` with its gradient, without running K steps.

    Both grow linearly in K, so two short calls tell: K = 2 and 3, or the multiples of n for ``Recompute(every=n)``, or
    past n for ``Truncate(n)``. Each runs once to be counted, and once or, if that is short, twice to be timed. What is
    counted is tensors, not the scratch inside an operator.

    Args:
        unrolled: the loss.
        *batch: as for a call.
        steps: K; None for the loss's own.
        wrt: as in ``verify``.
        **options: as for a call.

    Returns:
        What was extrapolated; ``print`` it.

    Raises:
        ValueError: there is nothing to differentiate with respect to.
    """
    check_examined(unrolled, "predict", batch)
    count, _ = unrolled.plan(steps, None)
    short = (2, 3) if unrolled.stop_gradient else _short(unrolled.backward)
    examined = Examined(unrolled, batch, wrt, options, short[1]).required()

    def gradient(k: int) -> Any:
        return examined.quietly(steps=k)

    def peak(k: int) -> int:
        memory = PeakMemory()
        examined.quietly(seen, k, memory)
        return memory.peak

    device = examined.owned[0].device
    # Compiled kernels allocate where nobody sees it; they hold what Recompute does, and less while they run.
    seen = copy.copy(unrolled)
    seen.backward = _seen(unrolled.backward)
    # Counted first: the first calls of all pay for what later ones find ready.
    peaks = [peak(k) for k in short]
    if seen.backward is not unrolled.backward:
        gradient(short[0])
    rounds = [[_seconds(lambda k=k: gradient(k), device) for k in short]]
    if sum(rounds[0]) < _SHORT:
        # Interleaved, and the faster of two: whatever else runs only ever adds.
        rounds.append([_seconds(lambda k=k: gradient(k), device) for k in short])
    times = [min(times) for times in zip(*rounds, strict=True)]
    a, b = short
    size, per_step = peaks[1] - peaks[0], (times[1] - times[0]) / (b - a)
    if not 0 < per_step <= times[0] / a:
        # Whatever else ran meanwhile took longer than a step does: then all of a call is shared out.
        per_step = min(times[0] / a, times[1] / b)
    return Prediction(
        steps=count,
        # At K = 0 and 1 no less than the share of these in the shortest call.
        seconds=max(times[0] + (count - a) * per_step, times[0] * count / a if count < a else 0.0),
        bytes=max(0, round(peaks[0] + (count - a) * size / (b - a))),
        seconds_per_step=per_step,
        bytes_per_step=size / (b - a),
        measured=short,
    )


def _seen(backward: Any) -> Any:
    if isinstance(backward, Truncate):
        return replace(backward, backward=_seen(backward.backward))
    return Recompute() if isinstance(backward, Compiled) and backward.in_use else backward


def _short(backward: Any) -> tuple[int, int]:
    """Two small K between which one more period of the backward lies, and nothing else."""
    if isinstance(backward, Truncate):
        return backward.steps + 1, backward.steps + 2
    every = backward.every if isinstance(backward, Recompute) else 1
    # Not 1: the first step needs no cotangent of its start, so its pullback holds less than the others.
    return 2 * every, 3 * every if every > 1 else 3


def _seconds(function: Callable[[], Any], device: torch.device) -> float:
    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    began = now()
    function()
    return now() - began
