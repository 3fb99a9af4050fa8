"""A grid of runs from the command line: which are there, which are missing, and how each is doing."""

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from common import checkpoint, distributed
from common.grid import Failure, run_grid
from common.progress import progress_bar
from common.report import usable_cores


class Preset(NamedTuple):
    """What one command trains: `base` with every K and every seed."""

    base: Any
    unroll: tuple[int, ...]
    seeds: tuple[int, ...]

    def configs(self, args: argparse.Namespace, **changes: Any) -> list[Any]:
        """The grid, with what the command line says instead; K by K.

        Args:
            args: The command line that `arguments.experiment_parser` describes.
            **changes: Further fields of the configuration.

        Returns:
            One configuration a run.
        """
        changes = {"updates": args.steps, "objective": args.objective, **changes}
        base = replace(self.base, **{name: value for name, value in changes.items() if value is not None})
        return [
            replace(base, unroll=unroll, seed=seed)
            for unroll in sorted(set(args.unroll or self.unroll))
            for seed in dict.fromkeys(args.seeds or self.seeds)
        ]


def updates_done(
    parser: argparse.ArgumentParser, args: argparse.Namespace, runs: Mapping[Path, Any]
) -> dict[Path, int]:
    """Generator updates that every run has behind it; refusals come here, before the first update.

    Args:
        parser: Ends the program where --out cannot be used as it is.
        args: The command line.
        runs: Configurations by their checkpoint.

    Returns:
        The same keys, 0 for a run that has not begun.
    """
    done = {}
    try:
        for path, config in runs.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            if args.restart:
                path.unlink(missing_ok=True)
                shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            state = checkpoint.load(path, asdict(config))
            done[path] = state["progress"]["update"] if state else 0
            if 0 < done[path] < config.updates and not (args.resume or args.report):
                parser.error(
                    f"{path} stands at {done[path]:,} of {config.updates:,} updates. Give --resume to go on "
                    f"from there, --restart to begin again, or another --out."
                )
        if args.report and not any(done.values()):
            parser.error(f"--report: no run in {args.out} has begun. Leave --report out to train, or give its --out.")
    except checkpoint.CheckpointError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"--out {args.out} cannot be used: {error}. Give a folder that can be written to.")
    return done


def train_missing(
    args: argparse.Namespace,
    runs: Mapping[Path, Any],
    done: dict[Path, int],
    run: Callable[..., None],
    *,
    plain_cost: float = 2,
) -> bool:
    """Calls `run(config, device, path, save_every, report)` for every run that is not finished.

    The first seed comes first, the longest run first within a seed: a grid that is stopped early has compared
    every K once.

    Args:
        args: The command line.
        runs: Configurations by their checkpoint.
        done: What `updates_done` returned; it follows the runs.
        run: A function at the top level of a script, or a partial of one.
        plain_cost: An update at K = 0 in gradients of D's loss; an unrolled step costs about four.

    Returns:
        Whether all went well. What did not is on stderr.
    """
    cost = {path: plain_cost + 4 * config.unroll for path, config in runs.items()}
    seeds = list(dict.fromkeys(config.seed for config in runs.values()))

    def work_left(path: Path) -> float:
        return cost[path] * (runs[path].updates - done[path])

    missing = [path for path in runs if done[path] < runs[path].updates]
    missing.sort(key=lambda path: (seeds.index(runs[path].seed), -work_left(path)))
    jobs = [(runs[path], args.device, path, args.save_every) for path in missing]
    workers = args.workers or max(1, usable_cores() // args.threads)
    failures, states = [], dict[Path, str]()
    try:
        with progress_bar(sum(map(work_left, missing)), f"{len(missing)} of {len(runs)} runs") as bar:
            together = distributed.run_together(run, jobs) if distributed.launched() else None
            for job, message in together or run_grid(run, jobs, workers=workers, threads=args.threads):
                path = missing[job]
                if isinstance(message, Failure):
                    failures.append(f"{path.stem} failed: {message.reason}")
                    states.pop(path, None)
                    continue
                if bar.n == 0:
                    # The time that the processes take to start says nothing about the time left.
                    bar.unpause()
                update, state = message
                # A run that is loading or measuring says 0: it has made no update that it has not reported.
                update = max(update, done[path])
                states[path] = f"{path.stem}: {state}"
                bar.set_postfix_str(", ".join(states.values()), refresh=False)
                bar.update(cost[path] * (update - done[path]))
                done[path] = update
                if update == runs[path].updates:
                    del states[path]
    except KeyboardInterrupt:
        failures.append("Stopped.")
    if failures:
        failures.append(f"Finished runs in {args.out} stay. Repeat the command with --resume to go on.")
        print("\n".join(failures), file=sys.stderr)
    return not failures


def records(runs: Mapping[Path, Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Configuration and progress of every run that has a checkpoint, in the order of `runs`."""
    for path, config in runs.items():
        state = checkpoint.load(path, asdict(config))
        if state is not None:
            yield config, state["progress"]
