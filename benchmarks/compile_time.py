"""Seconds of the first call with `Compiled()`: in a first process, and in a second one that finds its code on disk.

Beside it the time of a later call, divided by that of `Store()`.

python benchmarks/compile_time.py                  # the ring, K = 10
python benchmarks/compile_time.py --nets stacked   # K = 5
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile

import torch
from nets import NETS, set_up
from timing import CLOCKS, interleaved, seconds, spread

from unroll_wrap import Compiled, Store, UnrolledGeneratorLoss


def measure(name: str) -> tuple[float, float]:
    """Seconds of the first call and its derivative; and the time of later ones, divided by that of `Store()`."""
    torch.set_num_threads(1)
    here = set_up(NETS[name])

    def call(backward: Compiled | Store) -> None:
        options = {"steps": here.problem.steps, "backward": backward}
        unrolled = UnrolledGeneratorLoss(here.D, here.optimizer, *here.problem.objective, **options)
        torch.autograd.grad(unrolled(here.real, here.fake), here.fake)

    backwards = {"compiled": Compiled(), "store": Store()}
    first = seconds(lambda: call(backwards["compiled"]), 1, CLOCKS["wall"])
    later = interleaved({key: lambda one=one: call(one) for key, one in backwards.items()}, budget=10.0)
    return first, spread([a / b for a, b in zip(*later.values(), strict=True)])["median"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nets", nargs="+", choices=NETS, default=["ring"], help="default: ring")
    parser.add_argument("--here", choices=NETS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        print(json.dumps(measure(args.here)))
        return
    for name in args.nets:
        with tempfile.TemporaryDirectory() as cache:
            environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
            command = [sys.executable, __file__, "--here", name]
            runs = [json.loads(subprocess.check_output(command, env=environment)) for _ in range(2)]
        (first, ratio), (second, _) = runs
        print(
            f"{NETS[name].title}: {first:.1f} s, in a second process {second:.1f} s; a later call {ratio:.2f} of Store"
        )


if __name__ == "__main__":
    main()
