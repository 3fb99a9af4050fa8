"""Seconds of the first call with `Compiled()`: in a first process, and in a second one that finds its code on disk.

python benchmarks/compile_time.py                  # the ring, K = 10
python benchmarks/compile_time.py --nets stacked
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time

import torch
from nets import NETS, set_up

from unroll_wrap import Compiled, UnrolledGeneratorLoss


def first_call(name: str) -> float:
    """Seconds of the first call and its derivative."""
    torch.set_num_threads(1)
    here = set_up(NETS[name])
    losses = here.problem.objective
    unrolled = UnrolledGeneratorLoss(here.D, here.optimizer, *losses, steps=here.problem.steps, backward=Compiled())
    began = time.perf_counter()
    torch.autograd.grad(unrolled(here.real, here.fake), here.fake)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nets", nargs="+", choices=NETS, default=["ring"], help="default: ring")
    parser.add_argument("--here", choices=NETS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        print(f"{first_call(args.here):.1f}")
        return
    for name in args.nets:
        with tempfile.TemporaryDirectory() as cache:
            environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
            command = [sys.executable, __file__, "--here", name]
            found = [subprocess.check_output(command, env=environment, text=True).strip() for _ in range(2)]
        print(f"{NETS[name].title}: {found[0]} s in the first process, {found[1]} s in the second")


if __name__ == "__main__":
    main()
