"""Tables and summary of the runs that are finished."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from common.files import write_json, write_text
from common.report import markdown_table, mean_and_error, provenance
from remedy.figure import draw
from remedy.settings import SETTINGS
from remedy.task import Measure, Task
from remedy.training import reading

Record = Mapping[str, Any]
UNITS = ("updates", "seconds")


def write_results(out: Path, preset: str, tasks: Sequence[Task], seeds: Sequence[int]) -> None:
    """Writes table.md, summary.json and figure.png, and prints the table.

    Args:
        out: The folder, whose `runs` has the records.
        preset: Its name.
        tasks: All of them.
        seeds: That a finished setting has.
    """
    everything = [json.loads(path.read_text()) for path in sorted((out / "runs").glob("*.json"))]
    found: dict[tuple[str, str], list[Record]] = {
        (task.name, setting): [
            record for record in everything if (record["data"], record["setting"]) == (task.name, setting)
        ]
        for task in tasks
        for setting in SETTINGS
    }
    found = {key: [record for record in records if record["seed"] in seeds] for key, records in found.items()}
    rows = {
        task.name: [summarise(task, found[task.name, s]) for s in SETTINGS if found[task.name, s]] for task in tasks
    }
    unfinished = {key: len(records) for key, records in found.items() if len(records) < len(seeds)}

    tasks = [task for task in tasks if rows[task.name]]
    note = "Smoke: shows that every setting runs. These numbers mean nothing.\n\n" if preset == "smoke" else ""
    parts = [f"## All\n\n{overview(tasks, rows)}"]
    parts += [f"## {task.name}, {task.modes:,} modes\n\n{table(task, rows[task.name])}" for task in tasks]
    if unfinished:
        of_count: dict[str, list[str]] = {}
        for (task, setting), count in unfinished.items():
            of_count.setdefault(f"{task}, {count} of {len(seeds)} seeds", []).append(setting)
        parts.append("Not finished:\n\n" + "".join(f"- {of}: {'; '.join(names)}\n" for of, names in of_count.items()))
    text = note + "\n".join(parts)
    write_text(out / "table.md", text)
    write_json(
        out / "summary.json",
        {
            **provenance(torch.device("cpu")),
            "preset": preset,
            "numbers_mean_nothing": preset == "smoke",
            "config": {task.name: task.shared() for task in tasks},
            "rates_of_D": {task.name: list(task.rates) for task in tasks},
            "processor_seconds": round(sum(record["seconds"] for record in everything), 1),
            "runs_finished": len(everything),
            "not_finished": {", ".join(key): count for key, count in unfinished.items()},
            "runs": [row for task in tasks for row in rows[task.name]],
        },
    )
    draw(out / "figure.png", tasks, found, preset)
    print(text)


def summarise(task: Task, records: Sequence[Record]) -> dict[str, Any]:
    """A row of the table: a setting's seeds, at both budgets."""
    first = records[0]
    row: dict[str, Any] = {name: first[name] for name in ("data", "setting", "group", "d_lr", "g_lr", "budget")}
    for name, of in (("seeds", "seed"), ("updates", "updates"), ("seconds", "seconds"), ("stopped", "stopped")):
        row[name] = [record[of] for record in records]
    row["ms_per_update"] = round(1e3 * sum(row["seconds"]) / sum(row["updates"]), 2)
    for unit in UNITS:
        points = [reading(record, unit) for record in records]
        for measure in task.measures:
            row[f"{measure.name}_at_{unit}"] = [point[measure.name] for point in points]
    return row


def table(task: Task, rows: Sequence[Record]) -> str:
    """All of a task: means over the seeds with their standard error."""
    header = ["", "seeds", "D's rate", "ms an update"]
    header += [f"{measure.title} at {when}" for when in budgets(rows).values() for measure in task.measures]
    cells = []
    for row in rows:
        measures = [mean(row, unit, measure) for unit in UNITS for measure in task.measures]
        cells.append([row["setting"], len(row["seeds"]), f"{row['d_lr']:g}", f"{row['ms_per_update']:.1f}", *measures])
    return markdown_table(header, cells)


def overview(tasks: Sequence[Task], rows: Mapping[str, Sequence[Record]]) -> str:
    """Modes alone, of all tasks side by side."""
    header = [""]
    for task in tasks:
        header += [f"{task.name}: modes of {task.modes:,} at {when}" for when in budgets(rows[task.name]).values()]
    cells = []
    for setting in SETTINGS:
        cell = [setting]
        for task in tasks:
            of_setting = [row for row in rows[task.name] if row["setting"] == setting]
            cell += [mean(of_setting[0], unit, task.measures[0]) if of_setting else "-" for unit in UNITS]
        cells.append(cell)
    return markdown_table(header, [cell for cell in cells if set(cell[1:]) != {"-"}])


def budgets(rows: Sequence[Record]) -> dict[str, str]:
    """In words, by unit."""
    budget = rows[0]["budget"]
    return {"updates": f"{budget['updates']:,} updates", "seconds": f"{budget['seconds']:g} s"}


def mean(row: Record, unit: str, measure: Measure) -> str:
    """Of the seeds, with its error."""
    values = [measure.scale * value for value in row[f"{measure.name}_at_{unit}"]]
    return mean_and_error(values, measure.digits) + measure.sign
