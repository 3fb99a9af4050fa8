"""Modes against seconds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from common.plots import save
from remedy.settings import REMEDIES, SETTINGS, UNROLLING
from remedy.task import Task

Record = Mapping[str, Any]
GROUPS = (UNROLLING, REMEDIES)  # the pairs with K = 5 are in the table alone


def draw(path: Path, tasks: Sequence[Task], found: Mapping[tuple[str, str], Sequence[Record]], preset: str) -> None:
    """The mean of the seeds: a row of panels for each task, a panel for each group."""
    figure = Figure(figsize=(11, 4.6 * len(tasks)), layout="constrained")
    panels = figure.subplots(len(tasks), len(GROUPS), squeeze=False)
    for task, line in zip(tasks, panels, strict=True):
        for group, panel in zip(GROUPS, line, strict=True):
            of_group = [s for s in SETTINGS if SETTINGS[s].group == group and found[task.name, s]]
            if not of_group:
                panel.set_axis_off()
                continue
            of_any_task = [s for s in SETTINGS if SETTINGS[s].group == group and s != "plain"]
            for setting in ["plain", *(s for s in of_group if s != "plain")]:
                is_plain = setting == "plain"
                color = "black" if is_plain else f"C{of_any_task.index(setting)}"
                curve = mean_curve(found[task.name, setting])
                panel.plot(*curve, color=color, linestyle="--" if is_plain else "-", label=setting)
            if task.modes < 1000:  # that many nothing comes near to
                panel.axhline(task.modes, color="0.6", linewidth=1, linestyle=":")
            title = f"{task.name}: {group}".replace("-", " ")
            panel.set(title=title, xlabel="training time (seconds of the processor)")
            panel.set_ylabel(f"modes covered (of {task.modes:,})")
            panel.grid(color="0.92")
            panel.legend(fontsize=9, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14))
        shown = [panel for panel in line if panel.lines]
        top = max(panel.get_ylim()[1] for panel in shown)
        for panel in shown:
            panel.set_ylim(-0.02 * top, top)
    if preset == "smoke":
        figure.suptitle("smoke: these numbers mean nothing")
    save(figure, path)


def mean_curve(records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
    """The mean over the seeds, up to the budget of seconds; between evaluations a straight line."""
    seconds = np.linspace(0, max(records[0]["budget"]["seconds"], 1e-3), 61)
    lines = []
    for record in records:
        at = [point["seconds"] for point in record["points"]]
        lines.append(np.interp(seconds, at, [point["modes"] for point in record["points"]]))
    return seconds, np.mean(lines, axis=0)
