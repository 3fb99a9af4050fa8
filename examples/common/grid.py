"""A grid of independent runs, in as many processes as go on at a time."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import torch


class Failure(NamedTuple):
    """Why a run ended early."""

    reason: str


class _Finished(NamedTuple):
    """A job's last message: its process is free for another."""


def run_grid(
    function: Callable[..., None], jobs: Sequence[tuple], *, workers: int, threads: int
) -> Iterator[tuple[int, Any]]:
    """Calls `function(*job, report)` for every job, `workers` at a time, and yields what the jobs report.

    A job that fails or is killed yields a `Failure` and the others go on.

    Args:
        function: A function at the top level of a module; its last argument sends a message to the caller.
        jobs: Arguments of each call, taken in this order: put the longest first.
        workers: Processes at a time.
        threads: Threads that torch uses in each of them.

    Yields:
        Pairs of a job's index and its message.
    """
    # Read once, when the child imports torch; small nets on two OpenMP threads are slower than on one.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    # glibc gives memory back to the kernel at the end of each update and faults it in again in the next.
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**31))
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**31))
    # A forked child inherits torch's thread pools and CUDA context in an unusable state.
    context = multiprocessing.get_context("spawn")
    waiting = deque(enumerate(jobs))
    running: dict[Connection, tuple[int | None, Any]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(function, theirs, threads), daemon=True)
                process.start()
                # The child then holds the only other end: its death, even by a kill, is an end of file.
                theirs.close()
                running[ours] = _next(ours, waiting), process
            for pipe in wait(list(running)):
                assert isinstance(pipe, Connection)
                index, process = running[pipe]
                try:
                    message = pipe.recv()
                except EOFError:
                    process.join()
                    del running[pipe]
                    if index is not None:
                        yield index, Failure(f"its process ended with exit code {process.exitcode}")
                    continue
                if isinstance(message, _Finished):
                    running[pipe] = _next(pipe, waiting), process
                else:
                    yield index, message
    finally:
        for _, process in running.values():
            process.terminate()


def _next(pipe: Connection, waiting: deque[tuple[int, tuple]]) -> int | None:
    """Sends the next job to a process, or None where there is no more; the job's index."""
    index, job = waiting.popleft() if waiting else (None, None)
    try:
        pipe.send(job)
    except BrokenPipeError:
        # It has died, and its end of file, which comes next, says so.
        pass
    return index


def _work(function: Callable[..., None], pipe: Connection, threads: int) -> None:
    # Ctrl-C reaches the whole group of processes; only the parent answers, and stops its children.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    for job in iter(pipe.recv, None):
        try:
            function(*job, pipe.send)
        except OSError as error:
            pipe.send(Failure(str(error)))
        except Exception:
            pipe.send(Failure(traceback.format_exc()))
        pipe.send(_Finished())


def _end_with_parent() -> None:
    # A parent that is killed outright cannot stop its children, and they would train on for hours.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
