"""What an optimizer's rule adds to an inner step: the ring's discriminator under each optimizer, against SGD.

An inner step is (T(K) - T(0)) / K, where T(K) is the loss after K steps with its gradient down to `fake`. All
optimizers are timed in one run on one thread, in interleaved rounds; the ratio to SGD is the median over the rounds of
the ratio within a round. An elementwise rule may add 15 %.

`--traced` times an optimizer that has no rule: its step() as it is traced (torch's own Adam, renamed, beside Adam's
rule): the first trace, the later ones, and a step whose trace is at hand.

    python benchmarks/rule_cost.py                        # two minutes
    python benchmarks/rule_cost.py --traced --json rule_cost.json
"""

import argparse
import gc
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import record
import torch
from nets import NETS, set_up
from timing import CLOCKS, seconds
from torch import Tensor

import unroll_wrap.optimizers.traced.recording
from unroll_wrap import UnrolledGeneratorLoss, minimax
from unroll_wrap.optimizers.read import rule_of


@dataclass(frozen=True)
class Config:
    repeats: int = 15  # interleaved rounds
    calls: int = 3  # of each optimizer in a round
    steps: int = 10  # K
    allowed: float = 1.15  # of SGD's inner step, for elementwise rules


optim = torch.optim

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": partial(optim.SGD, lr=1e-3),
    "SGD, momentum": partial(optim.SGD, lr=1e-3, momentum=0.9),
    "Adam": partial(optim.Adam, lr=1e-4, betas=(0.5, 0.999)),
    "Adam, amsgrad": partial(optim.Adam, lr=1e-4, betas=(0.5, 0.999), amsgrad=True),
    "AdamW": partial(optim.AdamW, lr=1e-4),
    "NAdam": partial(optim.NAdam, lr=1e-4),
    "RAdam": partial(optim.RAdam, lr=1e-4),
    "Adamax": partial(optim.Adamax, lr=1e-4),
    "Adadelta": optim.Adadelta,
    "Adagrad": partial(optim.Adagrad, lr=1e-3),
    "ASGD": partial(optim.ASGD, lr=1e-3),
    "RMSprop": partial(optim.RMSprop, lr=1e-4),
    "RMSprop, centered": partial(optim.RMSprop, lr=1e-4, centered=True, momentum=0.5),
    "Rprop": partial(optim.Rprop, lr=1e-4),
    "Adafactor": partial(optim.Adafactor, lr=1e-3),
}


class RenamedAdam(optim.Adam):
    """Adam without a rule: its step is its own."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class Timed:
    """The ring's D under an optimizer, and the call that is timed."""

    def __init__(self, make: Callable[..., torch.optim.Optimizer]) -> None:
        setup = set_up(NETS["ring"], optimizer=make)
        self.optimizer, self.real, self.fake = setup.optimizer, setup.real, setup.fake
        self.unrolled = UnrolledGeneratorLoss(setup.D, self.optimizer, *minimax)

    def gradient(self, steps: int) -> Tensor:
        return torch.autograd.grad(self.unrolled(self.real, self.fake, steps=steps), self.fake)[0]


def inner_step(setup: Timed, config: Config, clock: Callable[[], float]) -> float:
    """(T(K) - T(0)) / K, in seconds."""
    unrolled = seconds(partial(setup.gradient, config.steps), config.calls, clock)
    plain = seconds(partial(setup.gradient, 0), config.calls, clock)
    return (unrolled - plain) / config.steps


def measure(config: Config, clock: Callable[[], float], names: list[str]) -> list[dict[str, Any]]:
    setups = {name: Timed(OPTIMIZERS[name]) for name in names}
    for setup in setups.values():
        if not setup.gradient(config.steps).isfinite().all():
            raise ArithmeticError(f"{type(setup.optimizer).__name__}: the gradient is not finite.")
    rounds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(config.repeats):
        for name, setup in setups.items():
            rounds[name].append(inner_step(setup, config, clock))
    rows = []
    for name, setup in setups.items():
        rule = rule_of(setup.optimizer)
        ratios = [mine / base for mine, base in zip(rounds[name], rounds["SGD"], strict=True)]
        ratio = statistics.median(ratios)
        rows.append({
            "optimizer": name,
            "elementwise": rule.elementwise,
            "ms": 1e3 * statistics.median(rounds[name]),
            "over_sgd": ratio,
            "quartiles": statistics.quantiles(ratios, n=4)[::2] if len(ratios) > 1 else [ratio, ratio],
            "within": None if name == "SGD" or not rule.elementwise else ratio <= config.allowed,
        })
    return rows


def measure_traced(config: Config, clock: Callable[[], float]) -> dict[str, float]:
    """Milliseconds: traces, and an inner step with the trace at hand beside one by Adam's rule."""
    made: list[float] = []
    own = unroll_wrap.optimizers.traced.recording.Recorder.record

    def timed(*arguments: Any) -> Any:
        begin = clock()
        trace = own(*arguments)
        made.append(clock() - begin)
        return trace

    options = {"lr": 1e-4, "betas": (0.5, 0.999)}
    traced, ruled = (Timed(partial(kind, **options)) for kind in (RenamedAdam, optim.Adam))
    unroll_wrap.optimizers.traced.recording.Recorder.record = timed
    try:
        error = (traced.gradient(config.steps) - ruled.gradient(config.steps)).abs().max()
    finally:
        unroll_wrap.optimizers.traced.recording.Recorder.record = own
    if len(made) != config.steps or error > 1e-4 * ruled.gradient(config.steps).abs().max():
        raise ArithmeticError(f"{len(made)} traces for {config.steps} steps, and the gradients differ by {error:.1e}.")
    rounds = [[inner_step(one, config, clock) for one in (traced, ruled)] for _ in range(config.repeats)]
    return {
        "first_trace_ms": 1e3 * made[0],
        "later_trace_ms": 1e3 * statistics.median(made[1:] or made),
        "traced_step_ms": 1e3 * statistics.median(t for t, _ in rounds),
        "rule_step_ms": 1e3 * statistics.median(r for _, r in rounds),
        "traced_over_rule": statistics.median(t / r for t, r in rounds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=Config.repeats, help="interleaved rounds (%(default)s)")
    parser.add_argument("--calls", type=int, default=Config.calls, help="calls of each a round (%(default)s)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="processor time on a busy machine")
    parser.add_argument("--only", nargs="+", choices=list(OPTIMIZERS), help="and SGD")
    parser.add_argument("--traced", action="store_true", help="the cost of traces, too")
    parser.add_argument("--json", type=Path, help="write everything there")
    args = parser.parse_args()
    config = replace(Config(), repeats=args.repeats, calls=args.calls)
    torch.set_num_threads(1)
    gc.freeze()

    clock = CLOCKS[args.clock]
    names = [name for name in OPTIMIZERS if name == "SGD" or not args.only or name in args.only]
    rows = measure(config, clock, names)
    print(f"ring's D, batch 512, K={config.steps}, one thread, medians of {config.repeats} rounds\n")
    print(f"{'optimizer':20s} {'ms a step':>10s} {'over SGD':>9s}  quartiles")
    for row in rows:
        low, high = row["quartiles"]
        note = {True: "", False: f"  above {config.allowed}", None: ""}[row["within"]]
        note += "" if row["elementwise"] else "  (tensor by tensor)"
        print(f"{row['optimizer']:20s} {row['ms']:10.3f} {row['over_sgd']:9.2f}  {low:.2f} to {high:.2f}{note}")
    result = {"environment": record.environment() | {"clock": args.clock} | asdict(config), "rules": rows}
    if args.traced:
        result["traced"] = found = measure_traced(config, clock)
        first, later = found["first_trace_ms"], found["later_trace_ms"]
        print(f"\na trace of Adam's step(): {first:.0f} ms the first, {later:.0f} later")
        step, ratio = found["traced_step_ms"], found["traced_over_rule"]
        print(f"a step with its trace at hand: {step:.3f} ms, {ratio:.2f} of the rule's")
    if args.json:
        record.write(args.json, result)


if __name__ == "__main__":
    main()
