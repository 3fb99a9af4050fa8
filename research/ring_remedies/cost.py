"""What one update of both players costs: the least of several interleaved measurements, by the processor's time."""

import time
from pathlib import Path

import torch

from common.files import write_json, write_text
from common.report import markdown_table, provenance
from ring_remedies.settings import SETTINGS
from ring_remedies.training import Config, Run, minibatches, players_of


def measure(config: Config, repeats: int = 6, updates: int = 5) -> dict[str, float]:
    """Milliseconds an update, by setting. Rounds go through all settings, so that a crowded moment meets all alike."""
    started = {}
    for setting in SETTINGS:
        run = Run("ring", setting, 0, 1e-2)
        started[setting] = SETTINGS[setting].start(players_of(run, config)), minibatches(run, config)
    found = dict.fromkeys(SETTINGS, float("inf"))
    for repeat in range(repeats + 1):
        for setting, (update, batches) in started.items():
            drawn = [next(batches) for _ in range(updates)]
            began = time.process_time()
            for real, z in drawn:
                update(real, z)
            if repeat:  # the first warms up
                found[setting] = min(found[setting], 1e3 * (time.process_time() - began) / updates)
    return found


def write_cost(out: Path, config: Config) -> None:
    """Writes cost.md and cost.json, and prints the table."""
    found = measure(config)
    rows = [[name, f"{ms:.2f}", f"{ms / found['plain']:.1f}"] for name, ms in found.items()]
    text = markdown_table(["", "ms an update", "times plain"], rows)
    write_text(out / "cost.md", text)
    write_json(out / "cost.json", {**provenance(torch.device("cpu")), "ms_per_update": found})
    print(text)
