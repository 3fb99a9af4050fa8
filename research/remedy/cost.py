"""What one update of both players costs: the least of several interleaved measurements, by the processor's time."""

import time
from pathlib import Path

import torch

from common.files import write_json, write_text
from common.report import markdown_table, provenance
from remedy.settings import SETTINGS
from remedy.task import Task
from remedy.training import Run, players_of


def measure(task: Task, repeats: int = 6, updates: int = 5) -> dict[str, float]:
    """Milliseconds an update, by setting. Rounds go through all settings, so that a crowded moment meets all alike."""
    started = {}
    for setting in SETTINGS:
        run = Run(task.name, setting, 0, task.rates[0])
        started[setting] = SETTINGS[setting].start(players_of(run, task)), task.minibatches(0)
    found = dict.fromkeys(SETTINGS, float("inf"))
    for repeat in range(repeats + 1):
        for setting, (update, batches) in started.items():
            drawn = [next(batches) for _ in range(updates)]
            began = time.process_time()
            for for_D, for_G in drawn:
                update(for_D, for_G)
            if repeat:  # the first warms up
                found[setting] = min(found[setting], 1e3 * (time.process_time() - began) / updates)
    return found


def write_cost(out: Path, task: Task) -> None:
    """Writes cost.md and cost.json, and prints the table."""
    found = measure(task)
    rows = [[name, f"{ms:.2f}", f"{ms / found['plain']:.1f}"] for name, ms in found.items()]
    text = markdown_table(["", "ms an update", "times plain"], rows)
    write_text(out / "cost.md", text)
    write_json(out / "cost.json", {**provenance(torch.device("cpu")), "ms_per_update": found})
    print(text)
