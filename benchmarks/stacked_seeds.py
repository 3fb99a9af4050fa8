"""Eight seeds of the ring in one process against one: time of an update of both players, K = 10.

One seed is the example's own loop on plain networks with `Store()`; stacks are the studies' loop. Ratios are medians
over interleaved rounds of the ratio within a round, to the plain loop of the same batch.

    python benchmarks/stacked_seeds.py                    # a minute, most of it compiling
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import record
import torch
from timing import CLOCKS, interleaved

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
sys.path.insert(0, str(Path(__file__).parents[1] / "research"))

import mixture_of_gaussians as ring
from common.training import with_adam
from ring_studies import training

CPU = torch.device("cpu")


def plain(batch: int, steps: int) -> Callable[[], object]:
    config = ring.Config(unroll=steps, batch=batch, updates=10**9)
    torch.manual_seed(0)
    rates = {"g_lr": config.g_lr, "d_lr": config.d_lr, "betas": config.betas}
    loop = ring.train(config, with_adam(*ring.networks(config), CPU, **rates), 0, CPU)
    return lambda: next(loop)


def stacked(seeds: int, batch: int, steps: int, backward: str) -> Callable[[], object]:
    config = training.Config(unroll=steps, batch=batch, updates=10**9, seeds=tuple(range(seeds)), backward=backward)
    loop = training.train(config, training.build(config, CPU), 0, CPU)
    return lambda: next(loop)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[512, 128], help="sizes of the minibatch")
    parser.add_argument("--seeds", type=int, default=8, help="seeds in a stack")
    parser.add_argument("--steps", type=int, default=10, help="K")
    parser.add_argument("--budget", type=float, default=10, help="seconds of timing for each batch")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu on a machine with other work")
    parser.add_argument("--json", type=Path, help="where to write all of it")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = record.environment()
    print(record.headline(found))
    found["milliseconds"] = {}
    for batch in args.batches:
        contenders = {
            "1 seed, plain": plain(batch, args.steps),
            **{
                f"{seeds} stacked, {backward}": stacked(seeds, batch, args.steps, backward)
                for seeds in (1, args.seeds)
                for backward in ("store", "compiled")
            },
        }
        compiled = [name for name in contenders if "compiled" in name]
        times = interleaved(contenders, budget=args.budget, clock=args.clock, compiled=compiled)
        found["milliseconds"][batch] = {}
        print(f"\nbatch {batch}, K = {args.steps}:   ms an update, and over one plain seed's")
        for name, values in times.items():
            ms = 1000 * statistics.median(values)
            ratio = statistics.median(a / b for a, b in zip(values, times["1 seed, plain"], strict=True))
            found["milliseconds"][batch][name] = {"median": ms, "ratio": ratio}
            print(f"  {name:24}{ms:8.1f}{ratio:8.2f}")
    if args.json:
        record.write(args.json, found)


if __name__ == "__main__":
    main()
