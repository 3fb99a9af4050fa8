"""Peak memory of one unrolled gradient against K, a process for each number.

Counted is what torch's CPU allocator hands out during the call, above what was there before it: the running sum of the
allocations and frees that the profiler records. That is the same number in every run, where the resident size of the
process also holds what malloc keeps and changes from run to run. On CUDA the allocator's own counter is read instead.

Each of K steps leaves behind at least its parameters, optimizer state and buffers; the targets hold above that.

    python benchmarks/memory.py
    python benchmarks/memory.py --nets cifar10 --steps 1 5 10 20 50 --json out/memory.json --plot out/memory.png
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import record
import torch
from contenders import CHAINED, EXACT
from nets import NETS, Setup, set_up
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

RECOMPUTE_GROWTH = 1.15  # of Recompute's peak, from K=1 to the largest K, above what every step leaves
CONTENDERS = [name for name in EXACT if "closures" not in name]
MOST_STORED = 20  # steps of those that keep activations of several: beyond, they grow as they did


def peak_bytes(function: Callable[[], Tensor], device: torch.device) -> int:
    """The most that was allocated at once during a call."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
        function()
    now = peak = 0
    for event in recorded.profiler.kineto_results.events():  # in the order of time
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def per_step(setup: Setup) -> int:
    """Bytes of D's parameters, their optimizer's state, and D's buffers."""
    state = [t for s in setup.optimizer.state.values() for t in s.values() if t.dim()]
    return sum(t.numel() * t.element_size() for t in [*setup.params(), *state, *setup.D.buffers()])


def one(net: str, contender: str, steps: int) -> dict[str, int]:
    """This process's number."""
    setup = set_up(NETS[net], warm_up=2, device="cuda" if torch.cuda.is_available() else "cpu")
    # Kernels keep scratch from their first call on, whatever K.
    EXACT[contender](setup, 1)()
    gradient = EXACT[contender](setup, steps)
    return {"peak": peak_bytes(gradient, setup.fake.device), "per_step": per_step(setup)}


def spawn(net: str, contender: str, steps: int) -> dict[str, int]:
    command = [sys.executable, __file__, "--one", net, contender, str(steps)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{contender} at K={steps} failed:\n{done.stderr}")
    number = json.loads(done.stdout.splitlines()[-1])
    print(f"  {contender}, K={steps}: {number['peak'] / 1e6:.1f} MB", flush=True)
    return number


def summary(found: dict[str, dict[str, dict[str, int]]]) -> dict[str, Any]:
    """The two targets, from the smallest to the largest K."""

    def ends(name: str) -> tuple[str, str]:
        small, *_, large = sorted(found[name], key=int)
        return small, large

    def above(name: str, k: str) -> int:
        return found[name][k]["peak"] - int(k) * found[name][k]["per_step"]

    def slope(name: str) -> float:
        small, large = ends(name)
        return (found[name][large]["peak"] - found[name][small]["peak"]) / (int(large) - int(small))

    small, large = ends("Recompute")
    growth = above("Recompute", large) / above("Recompute", small)
    return {
        "recompute_growth": growth,
        "recompute_met": growth <= RECOMPUTE_GROWTH,
        "bytes_per_step": {name: slope(name) for name in found},
        "store_met": slope("Store") <= slope(CHAINED),
    }


def print_table(net: str, result: dict[str, Any]) -> None:
    found, s = result["found"], result["summary"]
    ks = sorted(found["Recompute"], key=int)
    state = next(iter(next(iter(found.values())).values()))["per_step"]
    print(f"\n{NETS[net].title}, batch {NETS[net].shape[0]}: peak MB; {result['seconds']:.0f} s")
    print(f"  parameters, optimizer state and buffers: {state / 1e6:.2f} MB")
    print(f"  {'':20}" + "".join(f"{f'K={k}':>10}" for k in ks) + f"{'MB a step':>12}")
    for name, row in found.items():
        cells = "".join(f"{row[k]['peak'] / 1e6:10.1f}" if k in row else f"{'-':>10}" for k in ks)
        print(f"  {name:20}{cells}{s['bytes_per_step'][name] / 1e6:12.2f}")
    met = {True: "met", False: "NOT MET"}
    print(
        f"  Recompute at K={ks[-1]} over K={ks[0]}, above that state: {s['recompute_growth']:.3f}, "
        f"at most {RECOMPUTE_GROWTH}: {met[s['recompute_met']]}"
    )
    print(f"  Store grows no faster than the chained graph: {met[s['store_met']]}")


def plot(path: Path, nets: dict[str, Any]) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(nets), figsize=(6 * len(nets), 4.5), squeeze=False)
    for ax, (net, result) in zip(axes[0], nets.items(), strict=True):
        for name, row in result["found"].items():
            ks = sorted(row, key=int)
            style = {"linestyle": "--", "marker": "s"} if name == CHAINED else {"marker": "o"}
            ax.plot([int(k) for k in ks], [row[k]["peak"] / 1e6 for k in ks], label=name, ms=4, **style)
        ax.set(title=NETS[net].title, xlabel="K", ylabel="peak MB of one gradient", xscale="log", yscale="log")
        ks = sorted(result["found"]["Recompute"], key=int)
        ax.set_xticks([int(k) for k in ks], ks)
        ax.grid(alpha=0.3)
        ax.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(f"written: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory against K (see the top of this file).")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=["cifar10"])
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 5, 10, 20, 50], metavar="K")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    parser.add_argument("--plot", type=Path, help="and a plot here")
    parser.add_argument("--one", nargs=3, metavar=("NET", "CONTENDER", "K"), help="one number, in this process")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.one:
        net, contender, steps = args.one
        print(json.dumps(one(net, contender, int(steps))))
        return
    if len([k for k in args.steps if k <= MOST_STORED]) < 2:
        parser.error(f"--steps needs two numbers up to {MOST_STORED} at least, to compare.")
    if hasattr(os, "sched_setaffinity"):
        # The timings of `make bench` have the last core.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    results: dict[str, Any] = {"environment": record.environment(), "nets": {}}
    print(record.headline(results["environment"]))
    for net in args.nets:
        begin = time.perf_counter()
        found = {
            name: {str(k): spawn(net, name, k) for k in args.steps if k <= MOST_STORED or name == "Recompute"}
            for name in CONTENDERS
        }
        results["nets"][net] = {"found": found, "summary": summary(found), "seconds": time.perf_counter() - begin}
        print_table(net, results["nets"][net])
    if args.json:
        record.write(args.json, results)
    if args.plot:
        plot(args.plot, results["nets"])


if __name__ == "__main__":
    main()
