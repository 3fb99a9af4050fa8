"""One run on several processes, as `torchrun --nproc-per-node N examples/SCRIPT.py ...` starts them.

Every process draws the whole minibatch of a single process, from the same random numbers, and takes its share of the
rows. Gradients are averaged, those of the unrolled steps too, so N processes train what one would but for BatchNorm,
whose statistics are of each process's own rows; and a checkpoint, which the first one writes, can be resumed on any
number of them. Without torchrun everything here is the identity.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def launched() -> bool:
    """Whether torchrun started this process."""
    return dist.is_torchelastic_launched()


def first() -> bool:
    """Whether this process is the one that writes."""
    return not launched() or int(os.environ["RANK"]) == 0


def group() -> Any:
    """What `average_gradients` is to be."""
    return dist.group.WORLD if launched() else False


def average_gradients(net: nn.Module) -> None:
    """Over the processes, after a backward pass; DistributedDataParallel would refuse two calls of D in one loss."""
    if launched():
        grads = [p.grad for p in net.parameters() if p.grad is not None]
        bucket = torch.cat([g.reshape(-1) for g in grads])
        dist.all_reduce(bucket)
        for g, mean in zip(grads, bucket.split([g.numel() for g in grads]), strict=True):
            g.copy_(mean.view_as(g) / dist.get_world_size())


def share(batch: Tensor) -> Tensor:
    """This process's rows."""
    return batch if not launched() else batch.chunk(dist.get_world_size())[dist.get_rank()]


def join(device: torch.device, batch: int) -> torch.device:
    """Meet the other processes, over NCCL on CUDA and Gloo on the CPU.

    Args:
        device: From the command line.
        batch: That is shared out.

    Returns:
        The device of this process.

    Raises:
        ValueError: The batch cannot be shared out evenly.
    """
    if not dist.is_initialized():
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        # The others wait while the first one trains a classifier or evaluates.
        dist.init_process_group(backend, timeout=timedelta(hours=2))
    if batch % dist.get_world_size():
        raise ValueError(
            f"A batch of {batch} cannot be shared by {dist.get_world_size()} processes. Start a number that divides it."
        )
    return torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device


@contextmanager
def in_turn(device: torch.device) -> Iterator[None]:
    """The first process alone, and then the others: what it has downloaded or trained is there for them."""
    if launched():
        join(device, 0)
        if not first():
            dist.barrier()
    yield
    if launched() and first():
        dist.barrier()


def run_together(function: Callable[..., None], jobs: Sequence[tuple]) -> Iterator[tuple[int, Any]]:
    """As `grid.run_grid`, but one run after the other, each on all processes; all but the first one end here.

    Args:
        function: Its last argument sends a message to the caller.
        jobs: Arguments of each call: a configuration, a device and a path first.

    Yields:
        Pairs of a job's index and its last message, on the first process.
    """
    for index, (config, device, path, *rest) in enumerate(jobs):
        last = (0, "")
        told = time.monotonic()

        def report(message: tuple[int, str], path: Any = path) -> None:
            nonlocal last, told
            last = message
            if time.monotonic() - told > 30:
                told = time.monotonic()
                print(f"{path.stem}: {message[0]:,} updates, {message[1]}", file=sys.stderr)

        function(config, join(device, config.batch), path, *rest, report)
        if first():
            yield index, last
    dist.barrier()
    dist.destroy_process_group()
    if not first():
        sys.exit(0)
