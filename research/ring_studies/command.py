"""The command line of the studies: trains the settings that are missing, and writes what they say."""

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from common import arguments
from common.data import sample_mixture
from common.experiment import records, train_missing, updates_done
from common.plots import density_table, dots
from common.report import markdown_table, mean_and_error, write_report
from common.training import snapshot_updates
from ring_studies.studies import PRESETS, STUDIES, Study
from ring_studies.training import Config, centers_of, run

# Inner steps of a whole run from which compiling, some ten seconds, is less than what it saves.
COMPILED_FROM = 3000


def configs(study: Study, preset: str, seeds: Sequence[int] | None = None, updates: int | None = None) -> list[Config]:
    """The settings of a study, in the order of its rows."""
    base, _, of_preset = PRESETS[preset]
    base = replace(base, seeds=tuple(seeds or of_preset), updates=updates or base.updates)
    found = []
    for changes in study.rows.values():
        config = replace(base, **changes)
        long = config.unroll * config.updates // config.every >= COMPILED_FROM
        found.append(replace(config, backward="compiled") if config.backward == "store" and long else config)
    return found


def run_path(out: Path, config: Config) -> Path:
    """The checkpoint of a setting. Studies share it, so its name is of the setting alone."""
    plain = Config()
    switches = (
        "square",
        "g_updates",
        "ensemble",
        "period",
        "gradient",
        "backward",
        "every",
        "resample",
        "inner",
        "sgd_lr",
    )
    changed = {name: getattr(config, name) for name in switches if getattr(config, name) != getattr(plain, name)}
    changed.pop("seeds", None)
    if config.backward == "compiled":
        del changed["backward"]  # a faster "store"
    words = [f"k{config.unroll}", *(f"{name}-{value}" for name, value in changed.items())]
    return out / "runs" / ("-".join(words).replace(", ", "-").replace(" ", "-") + ".pt")


def summarise(label: str, config: Config, progress: dict[str, Any]) -> dict[str, Any]:
    """A row of the table, seed by seed: the last evaluation, and when all modes were first covered at once."""
    history, every_mode = progress["history"], len(centers_of(config))

    def of_seeds(name: str) -> list[Any]:
        return [history[-1][f"{name}_seed{seed}"] for seed in config.seeds]

    first = {
        seed: next((point["update"] for point in history if point[f"modes_seed{seed}"] == every_mode), None)
        for seed in config.seeds
    }
    return {
        "setting": label,
        "unroll": config.unroll,
        "seeds": config.seeds,
        "updates": progress["update"],
        "modes": of_seeds("modes"),
        "within_3_std": of_seeds("within_3_std"),
        "updates_until_all_modes": list(first.values()),
        "seconds": round(progress["seconds"], 1),
        "cpu_seconds": round(progress["cpu_seconds"], 1),
    }


def table(rows: Sequence[Mapping[str, Any]], modes: int) -> str:
    """Means over the seeds with their standard error; the median of the updates over the seeds that got there."""
    header = ["", "seeds at the end", "modes", "within 3 std", f"updates until {modes}", "seconds"]
    cells = []
    for row in rows:
        first = [update for update in row["updates_until_all_modes"] if update is not None]
        until = f"{statistics.median_high(first):,} ({len(first)} of {len(row['seeds'])})" if first else "never"
        cells.append([
            row["setting"],
            f"{sum(count == modes for count in row['modes'])} of {len(row['modes'])} on all {modes}",
            mean_and_error(row["modes"], 1),
            mean_and_error([100 * share for share in row["within_3_std"]], 1) + " %",
            until,
            f"{row['cpu_seconds']:.0f}",
        ])
    return markdown_table(header, cells)


def write_results(
    args: argparse.Namespace, name: str, runs: Sequence[tuple[str, Path, Config]], seconds: float
) -> None:
    """Table, summary and figures of a study, of the rows that have a checkpoint.

    Args:
        args: The command line.
        name: Of the study.
        runs: Label, checkpoint and setting of every row.
        seconds: Time that this command took.
    """
    found = [(label, *next(records({path: config}))) for label, path, config in runs if path.exists()]
    rows = [summarise(label, config, progress) for label, config, progress in found]
    first = found[0][1]
    folder = argparse.Namespace(**{**vars(args), "out": args.out / name})
    write_report(
        folder,
        {path: config for _, path, config in runs},
        [(config, progress) for _, config, progress in found],
        table(rows, len(centers_of(first))),
        rows,
        seconds,
        question=STUDIES[name].question,
    )
    torch.manual_seed(0)
    data = sample_mixture(10_000, centers_of(first), first.std)
    density_table(
        folder.out / "figure.png",
        [(label, list(progress["snapshots"].values())) for label, _, progress in found],
        [f"{update:,}" for update in snapshot_updates(first.updates, first.columns)],
        data,
        caption=f"generator updates, seed {first.seeds[0]}",
        extent=1.5 * first.radius,
        bandwidth=0.05 * first.radius,
    )
    dots(
        folder.out / "measures.png",
        [row["setting"] for row in rows],
        {
            "modes at the end": (len(centers_of(first)), [row["modes"] for row in rows]),
            "share within 3 std at the end": (1, [row["within_3_std"] for row in rows]),
            "updates until all modes": (
                first.updates,
                [[update for update in row["updates_until_all_modes"] if update is not None] for row in rows],
            ),
        },
    )
    print(f"Figures: {folder.out / 'figure.png'}, {folder.out / 'measures.png'}")


def main(argv: Sequence[str]) -> int:
    """Trains what is missing of the studies, and writes the results of each."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(
        usage="python research/study.py NAME [NAME ...] [--preset NAME] [--seeds SEED ...] [...]",
        description="The controls of Appendix B on the ring of Gaussians, and what goes beyond them.",
        epilog="studies:\n"
        + "\n".join(f"  {name:20}{study.question}" for name, study in STUDIES.items())
        + "\n\nAll seeds of a setting are trained in one process. Finished settings in --out are kept, and shared by\n"
        "the studies; only what is missing is trained.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what to train")
    what.add_argument("names", nargs="+", metavar="NAME", choices=[*STUDIES, "all"], help="see below, or all")
    what.add_argument("--preset", choices=PRESETS, default="cpu", help="cpu: short and changed; paper: Appendix A")
    arguments.add_length_options(what, "All seeds of a setting are trained at once.", "setting")
    arguments.add_running_options(parser, "out/mixture_of_gaussians/studies/PRESET")
    args = parser.parse_args(argv)
    args.out = args.out or Path("out/mixture_of_gaussians/studies", args.preset)

    names = list(STUDIES) if "all" in args.names else list(dict.fromkeys(args.names))
    found = {
        name: [
            (label, run_path(args.out, config), config)
            for label, config in zip(
                STUDIES[name].rows, configs(STUDIES[name], args.preset, args.seeds, args.steps), strict=True
            )
        ]
        for name in names
    }
    runs = {path: config for rows in found.values() for _, path, config in rows}
    done = updates_done(parser, args, runs)
    finished = args.report or train_missing(args, runs, done, run)
    for name, rows in found.items():
        if any(path.exists() for _, path, _ in rows):
            print(f"\n{name}. {STUDIES[name].question}")
            write_results(args, name, rows, time.monotonic() - began)
    return 0 if finished else 1
