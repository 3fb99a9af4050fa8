"""Runs every case on 4 ranks and then on 2 of them: `python -m ranks FOLDER [PART OF A NAME]`."""

import importlib
import multiprocessing
import os
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from .failures import the_last_rank_ends
from .hosts import SCRIPTS
from .loop import trained
from .table import CASES, joined


def of_rank(rank, folder, only):
    """Every case on 4 ranks, and then on the first 2 of them."""
    results = {}
    for size in (4, 2):
        if rank >= size:
            break
        # As torchrun sets them; Accelerate and Fabric look here.
        os.environ |= {name: str(rank) for name in ("RANK", "LOCAL_RANK")}
        os.environ |= {name: str(size) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
        os.environ |= {"MASTER_ADDR": "localhost", "TORCHELASTIC_RUN_ID": "tests"}
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/{size}", rank=rank, world_size=size, timeout=timedelta(seconds=120)
        )
        for name, (sizes, function) in {**CASES, "the last rank ends": ((2, 4), the_last_rank_ends)}.items():
            if size not in sizes or only not in name:
                continue
            began = time.monotonic()
            # Whoever ends here has passed this one.
            results[name, size] = ("", 0.0)
            torch.save(results, folder / f"{rank}.pt")
            try:
                function(rank, size)
                problem = ""
            except BaseException:
                problem = traceback.format_exc()
            results[name, size] = (problem, time.monotonic() - began)
        torch.save(results, folder / f"{rank}.pt")
        if size > 2:
            dist.destroy_process_group()
    # Without taking the last group down, for which torch 2.6 waits for a rank that has ended.
    os._exit(0)


def main(folder, only=""):
    """Fork the ranks from one process that has imported and warmed up what they need: that is most of the work."""
    torch.set_num_threads(1)
    sys.path.append(str(Path(__file__).parents[3] / "examples"))
    for name in ("accelerate", "lightning.fabric", "torch._inductor", *SCRIPTS):
        importlib.import_module(name)

    joined(), trained()
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=of_rank, args=(rank, folder, only)) for rank in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
