"""Table, summary and figure of the runs that are finished."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from common.files import write_json, write_text
from common.plots import save
from common.report import markdown_table, mean_and_error, provenance
from ring_remedies.settings import REMEDIES, SETTINGS, TOGETHER, UNROLLING
from ring_remedies.training import CENTERS, reading

Record = Mapping[str, Any]


def summarise(records: Sequence[Record]) -> dict[str, Any]:
    """A row of the table: a setting's seeds, at both budgets."""
    first = records[0]
    row: dict[str, Any] = {name: first[name] for name in ("data", "setting", "group", "d_lr", "g_lr", "budget")}
    row["seeds"] = [record["seed"] for record in records]
    row["updates"] = [record["updates"] for record in records]
    row["seconds"] = [record["seconds"] for record in records]
    row["stopped"] = [record["stopped"] for record in records]
    row["ms_per_update"] = round(1e3 * sum(row["seconds"]) / sum(row["updates"]), 2)
    for unit in ("updates", "seconds"):
        points = [reading(record, unit) for record in records]
        row[f"modes_at_{unit}"] = [point["modes"] for point in points]
        row[f"within_3_std_at_{unit}"] = [point["within_3_std"] for point in points]
    return row


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Means over the seeds with their standard error."""
    budget = rows[0]["budget"]
    at = {"updates": f"{budget['updates']:,} updates", "seconds": f"{budget['seconds']:g} s"}
    header = ["", "seeds", "D's rate", "ms an update"]
    header += [f"{what} at {when}" for when in at.values() for what in ("modes", "good samples")]
    cells = []
    for row in rows:
        measures = []
        for unit in at:
            measures.append(mean_and_error(row[f"modes_at_{unit}"], 1))
            measures.append(mean_and_error([100 * share for share in row[f"within_3_std_at_{unit}"]], 1) + " %")
        cells.append([row["setting"], len(row["seeds"]), f"{row['d_lr']:g}", f"{row['ms_per_update']:.1f}", *measures])
    return markdown_table(header, cells)


def write_results(
    out: Path, preset: str, config: Mapping[str, Any], rates: Sequence[float], seeds: Sequence[int]
) -> None:
    """Writes table.md, summary.json and figure.png, and prints the table.

    Args:
        out: The folder, whose `runs` has the records.
        preset: Its name.
        config: What all runs share, in plain values.
        rates: Of D, that were searched.
        seeds: That a finished setting has.
    """
    everything = [json.loads(path.read_text()) for path in sorted((out / "runs").glob("*.json"))]
    found = [
        (data, setting, [r for r in everything if (r["data"], r["setting"]) == (data, setting) and r["seed"] in seeds])
        for data in CENTERS
        for setting in SETTINGS
    ]
    rows = [summarise(records) for _, _, records in found if records]
    unfinished = {f"{data}, {setting}": len(records) for data, setting, records in found if len(records) < len(seeds)}

    note = "Smoke: shows that every setting runs. These numbers mean nothing.\n\n" if preset == "smoke" else ""
    parts = [
        f"## {data}, {len(CENTERS[data]())} modes\n\n{table(of_data)}"
        for data in CENTERS
        if (of_data := [row for row in rows if row["data"] == data])
    ]
    if unfinished:
        words = [f"{name} ({count} of {len(seeds)} seeds)" for name, count in unfinished.items()]
        parts.append("Not finished: " + "; ".join(words) + ".\n")
    text = note + "\n".join(parts)
    write_text(out / "table.md", text)
    write_json(
        out / "summary.json",
        {
            **provenance(torch.device("cpu")),
            "preset": preset,
            "numbers_mean_nothing": preset == "smoke",
            "config": config,
            "searched_rates_of_D": list(rates),
            "processor_seconds": round(sum(record["seconds"] for record in everything), 1),
            "runs_finished": len(everything),
            "not_finished": unfinished,
            "runs": rows,
        },
    )
    draw(out / "figure.png", [(data, setting, records) for data, setting, records in found if records], preset)
    print(text)


def draw(path: Path, found: Sequence[tuple[str, str, Sequence[Record]]], preset: str) -> None:
    """Modes against seconds, the mean of the seeds: a row of panels for each mixture, a panel for each group."""
    mixtures = [data for data in CENTERS if any(data == of for of, _, _ in found)]
    groups = (UNROLLING, REMEDIES, TOGETHER)
    figure = Figure(figsize=(15, 5 * len(mixtures)), layout="constrained")
    panels = figure.subplots(len(mixtures), 3, squeeze=False)
    for data, line in zip(mixtures, panels, strict=True):
        for group, panel in zip(groups, line, strict=True):
            of_group = [(s, records) for of, s, records in found if of == data and SETTINGS[s].group == group]
            plain = [(s, records) for of, s, records in found if (of, s) == (data, "plain") and group != UNROLLING]
            for place, (setting, records) in enumerate([*plain, *of_group]):
                is_plain = setting == "plain"
                color = "black" if is_plain else f"C{place - 1}"
                panel.plot(*mean_curve(records), color=color, linestyle="--" if is_plain else "-", label=setting)
            panel.axhline(len(CENTERS[data]()), color="0.6", linewidth=1, linestyle=":")
            panel.set(
                title=f"{data}: {group}",
                xlabel="training time (seconds of the processor)",
                ylim=(-0.02 * len(CENTERS[data]()), None),
            )
            panel.set_ylabel(f"modes covered (of {len(CENTERS[data]())})")
            panel.grid(color="0.92")
            if panel.lines[1:]:  # beside the dotted line of all modes
                panel.legend(fontsize=9, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    if preset == "smoke":
        figure.suptitle("smoke: these numbers mean nothing")
    save(figure, path)


def mean_curve(records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
    """The mean over the seeds of what the last evaluation said, up to the budget of seconds."""
    seconds = np.linspace(0, max(records[0]["budget"]["seconds"], 1e-3), 60)
    lines = []
    for record in records:
        at = [point["seconds"] for point in record["points"]]
        latest = np.searchsorted(at, seconds, side="right") - 1
        lines.append(np.array([point["modes"] for point in record["points"]])[latest])
    return seconds, np.mean(lines, axis=0)
