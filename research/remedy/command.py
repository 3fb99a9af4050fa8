"""The command line: trains the runs that are missing, one after the other, and writes what they say."""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from common.checkpoint import CheckpointError
from common.data import DataError
from common.files import write_json
from remedy import digits, mixtures
from remedy.cost import write_cost
from remedy.report import write_results
from remedy.settings import SETTINGS
from remedy.task import Task
from remedy.training import Run, score, train

SEARCH_SEED = 100
TASKS = (*mixtures.CENTERS, *digits.RATES)


class Preset(NamedTuple):
    """The length of a run, the rates of D to choose from on mixtures, and the seeds."""

    mixtures: mixtures.Config
    rates: tuple[float, ...]
    digits: digits.Config
    seeds: tuple[int, ...]

    def task(self, name: str, out: Path, data: Path) -> Task:
        """One of `TASKS`."""
        if name in digits.RATES:
            return digits.StackedDigits(name, self.digits, data, out / "digit_classifier.pt")
        return mixtures.Mixture(name, self.mixtures, self.rates)


PRESETS = {
    "cpu": Preset(mixtures.Config(), (3e-3, 1e-2, 3e-2), digits.Config(), (0, 1, 2)),
    # Shows that every setting runs. Its numbers mean nothing.
    "smoke": Preset(mixtures.SMOKE, (1e-2, 3e-2), digits.SMOKE, (0,)),
}


def runs_of(
    task: Task, settings: Sequence[str], seeds: Sequence[int], record: Callable[[Run], Mapping[str, Any]]
) -> Iterator[Run]:
    """All runs in their order: first the search for D's rates, where there are several, then seed by seed.

    Args:
        task: What to train on.
        settings: Their labels.
        seeds: Of every setting.
        record: The record of a run that has been yielded before.

    Yields:
        Runs, to be finished before the next is asked for.
    """
    best = {}
    for setting in settings:
        searched = [Run(task.name, setting, SEARCH_SEED, rate, search=True) for rate in task.rates]
        if len(searched) > 1:
            yield from searched
            searched.sort(key=lambda run: -score(record(run), task))
        best[setting] = searched[0].d_lr
    for seed in seeds:
        for setting in settings:
            yield Run(task.name, setting, seed, best[setting])


def main(argv: Sequence[str]) -> int:
    """Trains what is missing of the grid and writes the results."""
    parser = argparse.ArgumentParser(
        usage="python research/remedies.py [--preset NAME] [--out FOLDER] [--data FOLDER] [--report | --cost] "
        "[--only TASK ...] [--settings LABEL ...] [--seeds N ...]",
        description="Unrolling beside other remedies against collapse, on a ring of 8 and a square of 25 Gaussians "
        "and, with two rates of D, on a thousand combinations of three digits.",
        epilog="Every finished run is a file in --out/runs and is kept. One thread; stop it whenever you like.",
    )
    parser.add_argument("--preset", choices=PRESETS, default="cpu", help="smoke is a test, whose numbers mean nothing")
    parser.add_argument("--out", type=Path, help="default: out/remedies/PRESET")
    parser.add_argument("--only", nargs="+", choices=TASKS, default=TASKS, help="train on these alone (default: all)")
    parser.add_argument(
        "--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), metavar="LABEL", help="these"
    )
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="these (default: the preset's)")
    parser.add_argument(
        "--data", type=Path, default=Path("data"), help="folder with MNIST; downloaded if absent (default: data)"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--report", action="store_true", help="train nothing: table and figure of what is finished")
    what.add_argument("--cost", action="store_true", help="measure what an update costs on the ring, and no more")
    args = parser.parse_args(argv)
    preset, out = PRESETS[args.preset], args.out or Path("out/remedies", args.preset)
    torch.set_num_threads(1)
    tasks = {name: preset.task(name, out, args.data) for name in TASKS}
    if args.cost:
        write_cost(out, tasks["ring"])
        return 0
    try:
        for name in args.only if not args.report else ():
            tasks[name].load()
    except (DataError, CheckpointError) as error:
        parser.error(str(error))

    def path(run: Run) -> Path:
        return out / "runs" / f"{run.name}.json"

    def record(run: Run) -> dict[str, Any]:
        return json.loads(path(run).read_text())

    began = time.monotonic()
    for name in args.only if not args.report else ():
        for run in runs_of(tasks[name], args.settings or list(SETTINGS), args.seeds or preset.seeds, record):
            # Where another search has chosen another rate, the run is made again.
            if not path(run).exists() or record(run)["d_lr"] != run.d_lr:
                write_json(path(run), train(run, tasks[name]))
                print(f"{time.monotonic() - began:7.0f} s  {run.name}  D's rate {run.d_lr:g}", flush=True)
    if not list((out / "runs").glob("*-seed*.json")):
        print("No setting has a finished run yet, so there is nothing to report.")
        return 1
    write_results(out, args.preset, list(tasks.values()), preset.seeds)
    return 0
