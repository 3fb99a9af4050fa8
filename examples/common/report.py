"""What a result must carry to be repeated: command, machine, versions; and tables."""

import argparse
import hashlib
import math
import os
import platform
import shlex
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from common.files import write_json, write_text
from common.plots import curves, image_table
from common.training import snapshot_updates


def write_report(
    args: argparse.Namespace,
    runs: Mapping[Path, Any],
    found: Sequence[tuple[Any, Mapping[str, Any]]],
    table: str,
    rows: Sequence[Mapping[str, Any]],
    seconds: float,
    **measured: Any,
) -> None:
    """The table, on the screen and as a file, with the runs that it leaves out; and everything as JSON.

    Args:
        args: The command line.
        runs: Configurations of the whole grid by their checkpoint.
        found: Configuration and progress of every run that has begun.
        table: Markdown.
        rows: A row a run, in plain values.
        seconds: Time that this command took.
        **measured: What else was found out, in plain values.
    """
    begun = {config: progress["update"] for config, progress in found}
    unfinished = [
        f"{path.stem} at {begun[config]:,} of {config.updates:,} updates"
        if config in begun
        else f"{path.stem} not begun"
        for path, config in runs.items()
        if begun.get(config) != config.updates
    ]
    if unfinished:
        table += "\nNot finished: " + "; ".join(unfinished) + ".\n"
    if args.preset == "smoke":
        table += "\nThese numbers mean nothing: the smoke preset shows that the script runs, and no more.\n"
    write_text(args.out / "table.md", table)
    print(f"\n{table}")
    # What all runs have in common; the rest is in the rows.
    first, *others = [asdict(config) for config, _ in found]
    shared = {name: value for name, value in first.items() if all(other[name] == value for other in others)}
    training = sum(progress["seconds"] for _, progress in found)
    # By which a checkpoint is known for the one that a row is of.
    paths = {config: path for path, config in runs.items()}
    rows = [
        {**row, "checkpoint_sha256": hashlib.sha256(paths[config].read_bytes()).hexdigest()}
        for row, (config, _) in zip(rows, found, strict=True)
    ]
    summary = {
        **provenance(args.device),
        "seconds": {"training": round(training, 1), "command": round(seconds, 1)},
        "config": shared,
        **measured,
        "runs": rows,
    }
    write_json(args.out / "summary.json", summary)
    print(f"Summary: {args.out / 'summary.json'}")


def summarise(
    found: Sequence[tuple[Any, Mapping[str, Any]]], axes: Sequence[str], measures: Iterable[str]
) -> list[dict[str, Any]]:
    """A row a run: each measure at the last evaluation, and its mean over the last third of training.

    The mean is there because one lucky checkpoint does not decide it.

    Args:
        found: Configuration and progress of every run that has begun.
        axes: Fields of the configuration that tell the runs apart.
        measures: Names in the histories.

    Returns:
        Plain values; the mean of a run that has not come so far is None.
    """
    rows = []
    for config, progress in found:
        history = progress["history"]
        late = [point for point in history if 3 * point["update"] > 2 * config.updates]
        row = {name: getattr(config, name) for name in axes} | {"updates": progress["update"]}
        for name in measures:
            row[name] = history[-1][name]
            row[f"{name}_last_third"] = round(statistics.fmean(point[name] for point in late), 4) if late else None
        rows.append({**row, "seconds": round(progress["seconds"], 1)})
    return rows


def over_seeds(
    configs: Iterable[Any], rows: Sequence[Mapping[str, Any]], axes: Sequence[str], measures: Mapping[str, int]
) -> dict[tuple, list[str]]:
    """Mean and standard error over the finished runs that differ in their seed alone.

    Args:
        configs: All runs of the grid.
        rows: What `summarise` returned.
        axes: Fields of the configuration that tell the groups apart.
        measures: Names in the rows, with the digits to print.

    Returns:
        For every group, and for "end" and "last third" of training, "finished of all" and then every measure.
    """
    groups = Counter(tuple(getattr(config, name) for name in axes) for config in configs)
    updates = {config.updates for config in configs}
    cells = {}
    for group, seeds in groups.items():
        finished = [row for row in rows if tuple(row[name] for name in axes) == group and row["updates"] in updates]
        for when, suffix in (("end", ""), ("last third", "_last_third")):
            values = [[row[name + suffix] for row in finished] for name in measures]
            cells[(*group, when)] = [f"{len(finished)} of {seeds}", *map(mean_and_error, values, measures.values())]
    return cells


def draw_figures(
    out: Path,
    found: Sequence[tuple[Any, Mapping[str, Any]]],
    panels: Sequence[tuple[str, str]],
    data: Mapping[str, float],
    *,
    side: int,
    suffix: str = "",
) -> None:
    """The measures of all runs over training, and samples of every seed, without its number in the name for the first.

    Args:
        out: The folder of the results.
        found: Configuration and progress of the runs to draw.
        panels: Pairs of a measure and its caption.
        data: The measures of the data itself.
        side: Images along each side of a panel of samples.
        suffix: Of the names of the files.
    """
    print("Drawing figures.", file=sys.stderr)
    histories: dict[str, list[Any]] = {}
    for config, progress in found:
        histories.setdefault(f"K = {config.unroll}", []).append(progress["history"])
    first = found[0][0]
    columns = [f"{update:,}" for update in snapshot_updates(first.updates, first.columns)]
    seeds = list(dict.fromkeys(config.seed for config, _ in found))
    figures = [out / f"curves{suffix}.png"]
    curves(figures[0], panels, histories, data, title=_seeds(seeds))
    for seed in seeds:
        # Unrolled above plain, as in the paper.
        samples = [
            (f"K = {config.unroll}", list(progress["snapshots"].values()))
            for config, progress in reversed(found)
            if config.seed == seed
        ]
        figures.append(out / f"samples{suffix}{f'-seed{seed}' if seed != first.seed else ''}.png")
        image_table(figures[-1], samples, columns, side=side, title=f"seed {seed}", below="generator updates")
    print(f"Figures: {', '.join(map(str, figures))}")


def _seeds(seeds: Sequence[int]) -> str:
    return f"seeds {', '.join(map(str, seeds))} (thin) and their mean (thick)" if seeds[1:] else f"seed {seeds[0]}"


def mean_and_error(values: Sequence[float], digits: int) -> str:
    """Mean ± s / √n over n seeds; the mean alone for one seed."""
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):,.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values) / math.sqrt(len(values)):,.{digits}f}"


def provenance(device: torch.device) -> dict[str, Any]:
    """Command as typed, machine, versions and date, without the paths of this machine.

    Args:
        device: Where the runs were trained.

    Returns:
        Plain values for JSON.
    """
    machine: dict[str, Any] = {"platform": platform.platform(), "cpu": _cpu_model(), "cores": usable_cores()}
    if device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(device)
    return {
        "command": "python " + shlex.join(_relative(argument) for argument in sys.argv),
        "machine": machine,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def usable_cores() -> int:
    """Cores that this process may run on, fewer than the machine's inside most containers."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table whose columns also line up in a terminal, numbers to the right.

    Args:
        header: Names of the columns.
        rows: Values, printed with `str`.

    Returns:
        The lines of the table, the last one ended.
    """
    cells = [list(header), *([str(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    padded = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in cells]
    lines = [f"| {' | '.join(row)} |" for row in padded]
    lines.insert(1, "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|")
    return "\n".join(lines) + "\n"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _relative(argument: str) -> str:
    path, here = Path(argument), Path.cwd()
    return str(path.relative_to(here)) if path.is_absolute() and path.is_relative_to(here) else argument
