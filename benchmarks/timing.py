"""Seconds per call, in interleaved rounds: machines drift, and only numbers of the same round are divided."""

import statistics
import sys
import time
from collections.abc import Callable, Collection
from typing import Any

import torch

# One thread's processor time is what wall time would be on an idle machine; the better choice on a busy one.
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def interleaved(
    functions: dict[str, Callable[[], Any]],
    rounds: tuple[int, int] = (3, 15),
    budget: float = 60.0,
    at_least: float = 0.05,
    clock: str = "wall",
    compiled: Collection[str] = (),
) -> dict[str, list[float]]:
    """Seconds per call of every function in every round; the order turns from round to round.

    Args:
        functions: what to time; one that takes less than a second is called before that.
        rounds: at least and at most so many.
        budget: seconds for all rounds together, between these bounds.
        at_least: a timing repeats a faster function for about so long.
        clock: one of ``CLOCKS``.
        compiled: those whose first call says nothing about the next.
    """
    found: dict[str, list[float]] = {}
    calls = {}
    for i, (name, function) in enumerate(functions.items()):
        show(f"  round 1, {i + 1}/{len(functions)}: {name}")
        once = seconds(function, 1, CLOCKS[clock])
        warm = once < 1 or name in compiled
        if warm:
            once = seconds(function, 1, CLOCKS[clock])
        calls[name] = max(1, round(at_least / max(once, 1e-9)))
        found[name] = [seconds(function, calls[name], CLOCKS[clock]) if warm else once]
    one_round = sum(calls[name] * s for name, (s,) in found.items())
    number = min(max(round(budget / one_round), rounds[0]), rounds[1])
    names = list(functions)
    for r in range(1, number):
        show(f"  round {r + 1}/{number}")
        for name in names[r % len(names) :] + names[: r % len(names)]:
            found[name].append(seconds(functions[name], calls[name], CLOCKS[clock]))
    show("")
    return found


def seconds(function: Callable[[], Any], calls: int, clock: Callable[[], float]) -> float:
    """Per call."""
    _wait()
    begin = clock()
    for _ in range(calls):
        function()
    _wait()
    return (clock() - begin) / calls


def _wait() -> None:
    """A GPU works on after a call has returned."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def spread(values: list[float]) -> dict[str, float]:
    """The median, and the quartiles around it."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": middle, "low": low, "high": high}


def show(line: str) -> None:
    """A line that the next one overwrites, for someone who watches."""
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
