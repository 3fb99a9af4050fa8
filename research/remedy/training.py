"""One run: a setting with a seed and D's rate, until both its updates and its seconds are used up.

Seconds are those of the processor that this process spent in the updates alone: evaluations do not count, nor does the
time that others have the processor, though a crowded one is also a slower one. Every setting with the same seed draws
the same G, the same data and the same noise.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from remedy.penalties import losses
from remedy.players import Players
from remedy.settings import SETTINGS
from remedy.task import Task


@dataclass(frozen=True)
class Run:
    """What a run is known by."""

    task: str
    setting: str
    seed: int
    d_lr: float
    search: bool = False  # a third of the length, to choose d_lr

    @property
    def name(self) -> str:
        """Of its file."""
        words = self.setting.replace(" = ", "").replace(",", "").replace(" ", "-")
        return f"{self.task}-{words}-" + (f"search-d{self.d_lr:g}" if self.search else f"seed{self.seed}")


def players_of(run: Run, task: Task) -> Players:
    """Networks, optimizers and losses; G is drawn first."""
    setting, config = SETTINGS[run.setting], task.config
    torch.manual_seed(run.seed)
    # As in `common.training.with_adam`: convolutions are faster so.
    G = task.generator().to(memory_format=torch.channels_last)
    D = setting.D(task).to(memory_format=torch.channels_last)
    opt_G = setting.optimizer(G.parameters(), lr=config.g_lr, betas=config.betas)
    opt_D = setting.optimizer(D.parameters(), lr=run.d_lr, betas=config.betas)
    return Players(G, D, opt_G, opt_D, *losses(task, setting.objective, setting.penalty))


def train(run: Run, task: Task) -> dict[str, Any]:
    """The record of a run, in plain values: evaluations by updates and seconds, and why it ended early, if it did."""
    config = task.config
    share = 1 / 3 if run.search else 1
    updates, seconds = max(1, round(config.updates * share)), config.seconds * share
    players = players_of(run, task)
    update_players = SETTINGS[run.setting].start(players)

    points: list[dict[str, float]] = []
    done, spent, stopped = 0, 0.0, None

    def look() -> None:
        points.append({"update": done, "seconds": round(spent, 4), **task.measure(players.G)})

    batches = task.minibatches(run.seed)
    look()
    looked = 0  # of the looks that are due by the seconds
    while done < updates or spent < seconds:
        for_D, for_G = next(batches)
        began = time.process_time()
        try:
            update_players(for_D, for_G)
        except ValueError as error:  # a loss is no longer finite
            stopped = str(error)
        spent += time.process_time() - began
        done += 1
        if stopped:
            break
        due = int(config.looks * min(spent / seconds, 1)) if seconds else 0
        if due > looked or done == updates or (done < updates and done % config.evaluate_every == 0):
            look()
            looked = due
    if points[-1]["update"] != done:
        look()
    return {
        "data": run.task,
        "setting": run.setting,
        "group": SETTINGS[run.setting].group,
        "seed": run.seed,
        "d_lr": run.d_lr,
        "g_lr": config.g_lr,
        "budget": {"updates": updates, "seconds": seconds},
        "updates": done,
        "seconds": round(spent, 3),
        "stopped": stopped,
        "points": points,
    }


def reading(record: Mapping[str, Any], unit: str, *, over: float = 1.005) -> dict[str, float]:
    """The last evaluation within the budget of updates, or of seconds, which the last update may exceed a little."""
    name = {"updates": "update", "seconds": "seconds"}[unit]
    return [point for point in record["points"] if point[name] <= over * record["budget"][unit]][-1]


def score(record: Mapping[str, Any], task: Task) -> float:
    """What D's rate is chosen by, at both budgets alike, the last update of the seconds left out."""
    return sum(task.score(reading(record, unit, over=1.0)) for unit in ("updates", "seconds"))
