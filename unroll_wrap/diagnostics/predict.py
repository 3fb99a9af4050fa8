"""Predict from short calls what K steps will cost on this machine."""

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..backward import Compiled, Recompute, Truncate
from ..loss import UnrolledLoss
from .examined import Examined, Wrt, check_examined
from .peak_memory import PeakMemory

# Where counting memory takes more than this share of the time, the calls are timed apart, once more.
_SHARE = 0.1


@dataclass(frozen=True)
class Prediction:
    """Time T(K) = T(b) + (K - b) · dT and memory M(K) = M(b) + (K - b) · dM of one gradient of the unrolled loss.

    Attributes:
        steps: K.
        seconds: T(K), in seconds.
        bytes: M(K), the most bytes that tensors take at one time in addition to those before the call.
        seconds_per_step: dT, in seconds.
        bytes_per_step: dM, in bytes.
        measured: a and b, the two values of K that were measured.
        seconds_at_zero: T(0), in seconds: the same loss, and its gradient, without steps.
    """

    steps: int
    seconds: float
    bytes: int
    seconds_per_step: float
    bytes_per_step: float
    measured: tuple[int, int]
    seconds_at_zero: float

    def __str__(self) -> str:
        """Return a short report."""
        a, b = self.measured
        return "\n".join([
            f"unroll_wrap.predict: K = {self.steps}, a call and its gradient take {self.seconds:.3g} s and "
            f"{self.bytes / 1e6:.4g} MB",
            f"  a step more  {self.seconds_per_step:.3g} s and {self.bytes_per_step / 1e6:.4g} MB",
            f"  at K = 0     {self.seconds_at_zero:.3g} s, so K = {self.steps} takes "
            f"{self.seconds / self.seconds_at_zero:,.1f} times as long",
            f"  measured at  K = {a} and {b}",
        ])


def predict(
    unrolled: UnrolledLoss,
    /,
    *batch: Any,
    steps: int | None = None,
    wrt: Wrt = None,
    **options: Any,
) -> Prediction:
    """Extrapolate T(K) = T(b) + (K - b) · dT, the time of a call with its gradient, and likewise its peak memory.

    Two short calls are enough, because both grow linearly in K: with K = 1 and 2, with 2n and 3n for
    ``Recompute(every=n)`` where n > 1, with n + 1 and n + 2 for ``Truncate(n)``, or with 2 and 3 for
    ``stop_gradient=True``. Each runs once while the memory of tensors is counted; what an operator uses
    inside is not counted. So this takes the time of three steps, and of two calls with K = 0 to compare with. Where D
    is so small that counting would slow it down, and on the ranks of a group, both short calls are timed once more.

    Args:
        unrolled: the loss.
        *batch: the positional arguments of a call, such as real and fake.
        steps: K; None for the loss's own.
        wrt: as in ``verify``.
        **options: the keyword arguments of a call.

    Returns:
        The extrapolated costs, in seconds and bytes, which you can ``print``.

    Raises:
        ValueError: nothing requires grad.
        RuntimeError: ``torch.no_grad()`` is on.

    Examples:
        >>> G, D = torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)
        >>> opt_D = torch.optim.SGD(D.parameters(), lr=0.1)
        >>> unrolled = unroll_wrap.UnrolledGeneratorLoss(D, opt_D, *unroll_wrap.non_saturating)
        >>> found = unroll_wrap.predict(unrolled, torch.randn(8, 2), G(torch.randn(8, 2)), steps=100)
        >>> found.steps, found.measured, found.seconds > 0
        (100, (1, 2), True)
    """
    check_examined(unrolled, "predict", batch, options)
    count, _ = unrolled.plan(steps, None)
    short = (2, 3) if unrolled.stop_gradient else _short(unrolled.backward)
    examined = Examined(unrolled, batch, wrt, options, short[1]).required()
    device = examined.owned[0].device
    # Allocations in compiled kernels cannot be seen. They hold what Recompute does and `kept`, and less while they run.
    seen = copy.copy(unrolled)
    seen.backward = _seen(unrolled.backward)

    counted = [PeakMemory() for _ in short]
    # The shorter comes first, because the first call pays for what later ones find ready.
    times = [_seconds(examined, device, k, seen, memory) for k, memory in zip(short, counted, strict=True)]
    compiled = seen.backward != unrolled.backward
    if compiled:
        examined.quietly(steps=short[0])
    # Ranks of a group make the same calls, so there a clock, which each has of its own, decides nothing.
    ranks = not isinstance(unrolled.average_gradients, bool)
    if compiled or ranks or sum(m.seconds for m in counted) > _SHARE * sum(times):
        times = [_seconds(examined, device, k) for k in short]
    a, b = short
    per_step = (times[1] - times[0]) / (b - a)
    if not 0 < per_step <= times[0] / a:
        # Other processes took longer than a step does. The time of a whole call is then divided among its steps.
        per_step = min(times[0] / a, times[1] / b)
    # The first of the two may find something of its own to make ready.
    at_zero = min(_seconds(examined, device, 0) for _ in range(2))
    # With K = 1 the one pullback holds less than those of other steps, so there the peaks tell nothing.
    first, second = counted[1].marks[:2]
    size = second - first if a == 1 else (counted[1].peak - counted[0].peak) / (b - a)
    kept = {k: _kept(unrolled.backward, k) for k in (a, b, count)}
    return Prediction(
        steps=count,
        seconds=times[1] + (count - b) * per_step,
        bytes=max(0, round(counted[1].peak + (count - b) * size)) + kept[count],
        seconds_per_step=per_step,
        bytes_per_step=size + (kept[b] - kept[a]) / (b - a),
        measured=short,
        seconds_at_zero=at_zero,
    )


def _seen(backward: Any) -> Any:
    if isinstance(backward, Truncate):
        return replace(backward, backward=_seen(backward.backward))
    return Recompute() if isinstance(backward, Compiled) and backward.in_use else backward


def _kept(backward: Any, steps: int) -> int:
    """Return the bytes that compiled steps keep besides."""
    if isinstance(backward, Truncate):
        return _kept(backward.backward, min(steps, backward.steps))
    return steps * backward.kept if isinstance(backward, Compiled) else 0


def _short(backward: Any) -> tuple[int, int]:
    """Return two small values of K that differ by one period of the backward, and by nothing else."""
    if isinstance(backward, Truncate):
        return backward.steps + 1, backward.steps + 2
    every = backward.every if isinstance(backward, Recompute) else 1
    return (1, 2) if every == 1 else (2 * every, 3 * every)


def _seconds(
    examined: Examined,
    device: torch.device,
    steps: int,
    unrolled: UnrolledLoss | None = None,
    memory: PeakMemory | None = None,
) -> float:
    """Return the time of a call and its gradient, without what is put back before and after."""
    times: list[float] = []

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    @contextmanager
    def clock() -> Iterator[None]:
        began = now()
        with memory or nullcontext():
            yield
        times.append(now() - began)

    examined.quietly(unrolled, steps, clock(), memory.mark if memory else None)
    return times[0]
