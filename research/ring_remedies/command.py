"""The command line: trains the runs that are missing, one after the other, and writes what they say."""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from common.files import write_json
from ring_remedies.cost import write_cost
from ring_remedies.report import write_results
from ring_remedies.settings import SETTINGS
from ring_remedies.training import CENTERS, Config, Run, score, train

SEARCH_SEED = 100
# What all runs share. The ring's other fields are its own experiment's, and play no part here.
SHARED = "noise std batch d_scale g_hidden d_hidden activation gain g_lr betas updates".split()
SHARED += "seconds samples evaluate_every".split()


class Preset(NamedTuple):
    """The length of a run, the rates of D to choose from, and the seeds."""

    config: Config
    rates: tuple[float, ...]
    seeds: tuple[int, ...]


PRESETS = {
    "cpu": Preset(Config(), (3e-3, 1e-2, 3e-2), (0, 1, 2)),
    # Shows that every setting runs. Its numbers mean nothing.
    "smoke": Preset(
        Config(updates=3, seconds=0.0, samples=100, batch=8, g_hidden=(8,), d_hidden=(8,), evaluate_every=1),
        (1e-2,),
        (0,),
    ),
}


def runs_of(preset: Preset, record: Callable[[Run], Mapping[str, Any]]) -> Iterator[Run]:
    """All runs in their order: setting by setting, first the search for D's rate, then the seeds with the best.

    Args:
        preset: What to train.
        record: The record of a run that has been yielded before.

    Yields:
        Runs, to be finished before the next is asked for.
    """
    for data in CENTERS:
        for setting in SETTINGS:
            searched = [Run(data, setting, SEARCH_SEED, rate, search=True) for rate in preset.rates]
            yield from searched
            best = max(searched, key=lambda run: score(record(run)))
            for seed in preset.seeds:
                yield Run(data, setting, seed, best.d_lr)


def main(argv: Sequence[str]) -> int:
    """Trains what is missing of the grid and writes the results."""
    parser = argparse.ArgumentParser(
        usage="python research/remedies.py [--preset NAME] [--out FOLDER] [--report | --cost]",
        description="Unrolling beside other remedies against collapse, on a ring of 8 and a square of 25 Gaussians.",
        epilog="Every finished run is a file in --out/runs and is kept. One thread; stop it whenever you like.",
    )
    parser.add_argument("--preset", choices=PRESETS, default="cpu", help="smoke is a test, whose numbers mean nothing")
    parser.add_argument("--out", type=Path, help="default: out/remedies/PRESET")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--report", action="store_true", help="train nothing: table and figure of what is finished")
    what.add_argument("--cost", action="store_true", help="measure what an update costs, some ten seconds, and no more")
    args = parser.parse_args(argv)
    preset, out = PRESETS[args.preset], args.out or Path("out/remedies", args.preset)
    torch.set_num_threads(1)
    if args.cost:
        write_cost(out, preset.config)
        return 0

    def record(run: Run) -> dict[str, Any]:
        return json.loads((out / "runs" / f"{run.name}.json").read_text())

    began = time.monotonic()
    for run in runs_of(preset, record) if not args.report else ():
        path = out / "runs" / f"{run.name}.json"
        if not path.exists():
            write_json(path, train(run, preset.config))
            print(f"{time.monotonic() - began:7.0f} s  {run.name}  D's rate {run.d_lr:g}", flush=True)
    if not list((out / "runs").glob("*-seed*.json")):
        print("No setting has a finished run yet, so there is nothing to report.")
        return 1
    config = {name: value for name, value in asdict(preset.config).items() if name in SHARED}
    write_results(out, args.preset, config, preset.rates, preset.seeds)
    return 0
