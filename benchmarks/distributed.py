"""What `average_gradients` costs on 1, 2 and 4 processes of this machine over Gloo, and what it would on a network.

Each process has a minibatch of its own of one size, so N of them do N times the work of one. In turn they look ahead
alone and with averaged gradients; a round counts what the slowest process took. Processes beyond the cores share them.

    overhead = T(averaged) / T(alone) - 1

The plot is a model: the time of a call alone, measured here, and messages of 2 (N - 1) / N · 4 P bytes, 2 K a call,
over an assumed bandwidth and latency.

    python benchmarks/distributed.py --json out/distributed.json --plot out/distributed.png
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import record
import torch
import torch.distributed as dist
from nets import NETS, set_up
from timing import seconds, spread

from unroll_wrap import UnrolledGeneratorLoss

ALONE, AVERAGED = "alone", "averaged"
BANDWIDTHS = [10 ** (7.5 + i / 4) for i in range(19)]  # bytes a second
LATENCY = 30e-6  # seconds a message
RANKS = 8  # of the model
ACCELERATOR = 100  # how much faster than a thread of this machine the second half of the plot computes


def of_rank(rank: int, size: int, name: str, steps: int, rounds: int, folder: str) -> None:
    """Time both ways, and write down every round's slowest process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/{name}{size}", rank=rank, world_size=size)
    problem = NETS[name]
    setup = set_up(problem)
    # The same D everywhere, and batches of each rank's own.
    torch.manual_seed(rank)
    real, fake = torch.randn(problem.shape), torch.randn(problem.shape, requires_grad=True)
    ways = {
        way: UnrolledGeneratorLoss(setup.D, setup.optimizer, *problem.objective, steps=steps, average_gradients=group)
        for way, group in ((ALONE, False), (AVERAGED, dist.group.WORLD))
    }

    def slowest(way: str, calls: int) -> float:
        dist.barrier()
        taken = torch.tensor(seconds(lambda: ways[way](real, fake).backward(), calls, time.perf_counter))
        dist.all_reduce(taken, dist.ReduceOp.MAX)
        return float(taken)

    # The first calls pay for what later ones find ready.
    slowest(AVERAGED, 2)
    calls = max(1, round(0.2 / slowest(ALONE, 2)))
    found: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds):
        for way in ways if number % 2 else reversed(ways):
            found[way].append(slowest(way, calls))
    if rank == 0:
        torch.save(found, f"{folder}/{name}{size}.pt")
    dist.barrier()
    dist.destroy_process_group()


def measure(name: str, sizes: list[int], steps: int, rounds: int) -> dict[str, Any]:
    problem = NETS[name]
    parameters = sum(p.numel() for p in problem.discriminator().parameters())
    rows = {}
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            arguments = [(rank, size, name, steps, rounds, folder) for rank in range(size)]
            processes = [context.Process(target=of_rank, args=one) for one in arguments]
            for process in processes:
                process.start()
            for process in processes:
                process.join()
            if any(process.exitcode for process in processes):
                raise SystemExit(f"{name} on {size} processes failed; see above.")
            found = torch.load(f"{folder}/{name}{size}.pt")
            overhead = [a / b - 1 for a, b in zip(found[AVERAGED], found[ALONE], strict=True)]
            rows[size] = {
                "ms": {way: spread([1e3 * s for s in values]) for way, values in found.items()},
                "overhead": spread(overhead),
                "bytes_per_rank": round(2 * steps * 2 * (size - 1) / size * 4 * parameters),
            }
    return {
        "problem": problem.title,
        "batch": problem.shape[0],
        "parameters": parameters,
        "steps": steps,
        "ranks": rows,
    }


def efficiency(result: Mapping[str, Any], bandwidth: float, faster: float = 1.0) -> float:
    """The share of a call that is not communication, by the model."""
    alone = result["ranks"][1]["ms"][ALONE]["median"] / 1e3 / faster
    message = LATENCY + 2 * (RANKS - 1) / RANKS * 4 * result["parameters"] / bandwidth
    return alone / (alone + 2 * result["steps"] * message)


def plot(path: Path, nets: Mapping[str, Any]) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4.5))
    for i, result in enumerate(nets.values()):
        for faster, style in ((1, "-"), (ACCELERATOR, "--")):
            label = f"{result['problem']}, P={result['parameters']:,}" + (f", {faster}x faster" if faster > 1 else "")
            shares = [efficiency(result, b, faster) for b in BANDWIDTHS]
            axes.semilogx(BANDWIDTHS, shares, style, color=f"C{i}", label=label)
    for bandwidth, name in ((1.25e8, "1 Gb/s"), (1.25e9, "10 Gb/s"), (1.25e10, "100 Gb/s"), (4e11, "NVLink")):
        axes.axvline(bandwidth, color="gray", lw=0.7, ls=":")
        axes.text(bandwidth, 0.98, name, rotation=90, fontsize=8, va="top", ha="right")
    axes.set(xlabel="bandwidth of a rank, bytes a second", ylabel=f"share of computing, {RANKS} ranks", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right", framealpha=1)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(f"written: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description="What averaged gradients cost (see the top of this file).")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2, 4], metavar="N", help="default: 1 2 4")
    parser.add_argument("--steps", type=int, default=5, metavar="K", help="default: 5")
    parser.add_argument("--rounds", type=int, default=6, metavar="N", help="default: 6")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    parser.add_argument("--plot", type=Path, help="and the model's plot here")
    args = parser.parse_args()
    if 1 not in args.ranks or min(args.ranks) < 1:
        parser.error(f"--ranks is {args.ranks}; the model needs 1 among them, and no number below it.")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    environment = record.environment()
    print(record.headline(environment))
    nets = {}
    for name in args.nets:
        nets[name] = result = measure(name, args.ranks, args.steps, args.rounds)
        title = f"{result['problem']}, batch {result['batch']} a rank"
        print(f"\n{title}, {result['parameters']:,} parameters, K={args.steps}")
        for size, row in result["ranks"].items():
            alone, averaged, overhead = row["ms"][ALONE], row["ms"][AVERAGED], row["overhead"]
            print(
                f"  {size} ranks: {alone['median']:8.2f} ms alone, {averaged['median']:8.2f} ms averaged, overhead "
                f"{overhead['median']:6.1%} ({overhead['low']:.1%} to {overhead['high']:.1%}), "
                f"{row['bytes_per_rank'] / 1e6:.2f} MB sent by each"
            )
    if args.json:
        record.write(args.json, {"environment": environment, "nets": nets})
    if args.plot:
        plot(args.plot, nets)


if __name__ == "__main__":
    main()
