"""One run: a setting with a seed and D's rate, until both its updates and its seconds are used up.

Seconds are those of the processor that this process spent in the updates alone: evaluations do not count, nor does the
time that others have the processor, though a crowded one is also a slower one. Every setting with the same seed draws
the same G, the same data and the same noise.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import mixture_of_gaussians as ring
from common.data import ring_centers, sample_mixture, square_centers
from common.metrics import modes_covered, share_within
from common.nets import mlp
from common.training import evaluation_noise
from ring_remedies.players import Players
from ring_remedies.settings import SETTINGS

CENTERS = {"ring": ring_centers, "square": square_centers}


@dataclass(frozen=True)
class Config(ring.Config):
    """Appendix A, shortened: D sees data as it is, which a D of bounded slope needs."""

    noise: int = 16
    std: float = 0.05
    batch: int = 128
    d_scale: float = 1.0
    g_lr: float = 2e-3
    evaluate_every: int = 50
    updates: int = 600
    seconds: float = 5.0
    samples: int = 2_000


@dataclass(frozen=True)
class Run:
    """What a run is known by."""

    data: str
    setting: str
    seed: int
    d_lr: float
    search: bool = False  # a third of the length, to choose d_lr

    @property
    def name(self) -> str:
        """Of its file."""
        words = self.setting.replace(" = ", "").replace(",", "").replace(" ", "-")
        return f"{self.data}-{words}-" + (f"search-d{self.d_lr:g}" if self.search else f"seed{self.seed}")


def players_of(run: Run, config: Config) -> Players:
    """Networks, optimizers and losses; G is drawn first."""
    setting = SETTINGS[run.setting]
    torch.manual_seed(run.seed)
    G = mlp((config.noise, *config.g_hidden, 2), gain=config.gain)
    D = setting.D(config)
    opt_G = setting.optimizer(G.parameters(), lr=config.g_lr, betas=config.betas)
    opt_D = setting.optimizer(D.parameters(), lr=run.d_lr, betas=config.betas)
    return Players(G, D, opt_G, opt_D, *setting.objective)


def minibatches(run: Run, config: Config) -> Iterator[tuple[Tensor, Tensor]]:
    """Data and noise from a generator of their own, which no setting draws from otherwise."""
    generator = torch.Generator().manual_seed(run.seed)
    centers = CENTERS[run.data]()
    while True:
        real = sample_mixture(config.batch, centers, config.std, generator)
        yield real, torch.randn(config.batch, config.noise, generator=generator)


def train(run: Run, config: Config) -> dict[str, Any]:
    """The record of a run, in plain values: evaluations by updates and seconds, and why it ended early, if it did."""
    share = 1 / 3 if run.search else 1
    updates, seconds = max(1, round(config.updates * share)), config.seconds * share
    players = players_of(run, config)
    update_players = SETTINGS[run.setting].start(players)
    noise = evaluation_noise(config.samples, config.noise, torch.device("cpu"))
    centers = CENTERS[run.data]()

    points: list[dict[str, float]] = []
    done, spent, due, stopped = 0, 0.0, 0.0, None

    def look() -> None:
        with torch.no_grad():
            samples = players.G(noise)
        points.append({
            "update": done,
            "seconds": round(spent, 4),
            "modes": modes_covered(samples, centers, config.std),
            "within_3_std": round(share_within(samples, centers, config.std), 4),
        })

    batches = minibatches(run, config)
    look()
    while done < updates or spent < seconds:
        real, z = next(batches)
        began = time.process_time()
        try:
            update_players(real, z)
        except ValueError as error:  # a loss is no longer finite
            stopped = str(error)
        spent += time.process_time() - began
        done += 1
        if stopped:
            break
        if (done <= updates and (done == updates or done % config.evaluate_every == 0)) or spent >= due:
            look()
            due = spent + seconds / 20
    look()
    return {
        "data": run.data,
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


def reading(record: dict[str, Any], unit: str) -> dict[str, float]:
    """The last evaluation within the budget of updates, or of seconds."""
    unit_of = {"updates": "update", "seconds": "seconds"}
    return [p for p in record["points"] if p[unit_of[unit]] <= record["budget"][unit]][-1]


def score(record: dict[str, Any]) -> float:
    """What D's rate is chosen by: covered modes and good samples, as shares, at both budgets."""
    every_mode = len(CENTERS[record["data"]]())
    at = [reading(record, unit) for unit in ("updates", "seconds")]
    return sum(point["modes"] / every_mode + point["within_3_std"] for point in at) / 4
