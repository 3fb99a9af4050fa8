"""One setting of a study, all of its seeds in one process.

    θ_G ← θ_G - η d f_K(θ_G, θ_D) / d θ_G,      θ_D ← θ_D + η d f(θ_G, θ_D) / d θ_D

The loop is that of the ring, on stacks of networks. The switches of Appendix B and of the studies beyond it are
flags of `UnrolledGeneratorLoss`, another optimizer handed to it, or a few lines of the loop.
"""

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import mixture_of_gaussians as ring
from common import checkpoint
from common.arguments import OBJECTIVES
from common.data import ring_centers, sample_mixture, square_centers
from common.metrics import modes_covered, share_within
from common.stacked import Streams, stack
from common.training import evaluation_noise, resumable, snapshot_updates
from unroll_wrap import Compiled, FiniteDifference, Store, Truncate, UnrolledGeneratorLoss

# Eq. 12: both terms, the first alone, or the first at the mean over θ^1..θ^K.
GRADIENTS = {
    "total": {},
    "first": {"stop_gradient": True},
    "first, averaged": {"stop_gradient": True, "average": True},
}
BACKWARDS = {
    "store": Store,
    "compiled": Compiled,
    "truncate 1": partial(Truncate, 1),
    "truncate 3": partial(Truncate, 3),
    "finite difference": FiniteDifference,
}


@dataclass(frozen=True)
class Config(ring.Config):
    """A setting, for all of its seeds. What is not said here is Appendix A."""

    seeds: tuple[int, ...] = (0, 1, 2, 3)
    square: bool = False  # 25 modes on a square grid in the place of the ring
    g_updates: int = 1  # of the generator for each of the discriminator
    # What the generator looks at: D itself, or this many of the past, kept every so many of D's updates.
    ensemble: int = 0
    period: int = 1
    # the unroll
    gradient: str = "total"
    backward: str = "store"
    every: int = 1  # other generator updates are plain
    resample: bool = False  # a new minibatch for each inner step
    inner: str = "live"  # the optimizer inside: D's own with its state, "fresh" Adam, or "sgd"
    sgd_lr: float = 0.0


class Parts(NamedTuple):
    """Everything that training changes."""

    G: nn.Module
    D: nn.Module
    opt_G: torch.optim.Adam
    opt_D: torch.optim.Adam
    past: "Past"
    streams: Streams


class Past(nn.Module):
    """Discriminators of the past: every `period`-th, of which the last `size` are kept."""

    def __init__(self, D: nn.Module, size: int, period: int) -> None:
        super().__init__()
        self.period = period
        self.members = nn.ModuleList(copy.deepcopy(D) for _ in range(size)).requires_grad_(False)
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    def see(self, D: nn.Module) -> None:
        """To be called after each of D's updates."""
        kept, rest = divmod(int(self.updates), self.period)
        if len(self.members) and rest == 0:
            self.members[kept % len(self.members)].load_state_dict(D.state_dict())
        self.updates += 1

    def judges(self) -> nn.ModuleList:
        """Those that there are by now."""
        return self.members[: -(-int(self.updates) // self.period)]


def build(config: Config, device: torch.device) -> Parts:
    """The networks of every seed, drawn in its own stream, as one G and one D."""
    streams = Streams(config.seeds)
    G, D = (stack(nets).to(device) for nets in zip(*streams.build(lambda: ring.networks(config)), strict=True))
    opt_G = torch.optim.Adam(G.parameters(), lr=config.g_lr, betas=config.betas)
    opt_D = torch.optim.Adam(D.parameters(), lr=config.d_lr, betas=config.betas)
    return Parts(G, D, opt_G, opt_D, Past(D, config.ensemble, config.period), streams)


def inside(config: Config, D: nn.Module, opt_D: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer of the inner steps. One that the loop never steps has no state: every call starts it afresh."""
    if config.inner == "fresh":
        return torch.optim.Adam(D.parameters(), lr=config.d_lr, betas=config.betas)
    if config.inner == "sgd":
        return torch.optim.SGD(D.parameters(), lr=config.sgd_lr)
    return opt_D


def train(config: Config, parts: Parts, done: int, device: torch.device) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The ring's loop; losses are sums over the seeds of means over a minibatch.

    Args:
        config: The setting.
        parts: Networks, optimizers and random streams, updated in place.
        done: Generator updates made already.
        device: Where the networks are.

    Yields:
        The number of generator updates made, and both losses, as means over the seeds.
    """
    G, D, opt_G, opt_D, past, streams = parts
    seeds = len(config.seeds)
    of_d, of_g = OBJECTIVES[config.objective]

    def d_loss(D: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        return seeds * of_d(D, real, fake)

    def g_loss(D: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        judges = past.judges() if config.ensemble else [D]
        return seeds * torch.stack([of_g(judge, real, fake) for judge in judges]).mean()

    opt_inside = inside(config, D, opt_D)
    unrolled = UnrolledGeneratorLoss(
        D,
        opt_inside,
        d_loss,
        g_loss,
        steps=config.unroll,
        backward=BACKWARDS[config.backward](),
        **GRADIENTS[config.gradient],
    )
    centers = centers_of(config)

    def minibatch() -> tuple[Tensor, Tensor]:
        real = streams.draw(lambda g: sample_mixture(config.batch, centers, config.std, generator=g))
        z = streams.draw(lambda g: torch.randn(config.batch, config.noise, generator=g))
        return real.to(device), z.to(device)

    def another(k: int) -> tuple[Tensor, Tensor]:
        real, z = minibatch()
        return real, G(z)

    rates = {opt_G: config.g_lr, opt_D: config.d_lr}
    rates[opt_inside] = config.sgd_lr if config.inner == "sgd" else config.d_lr
    loss_D = torch.full((), torch.nan)  # until D has moved, in a run that is resumed between two of its updates
    for update in range(done + 1, config.updates + 1):
        remaining = 1 - (update - 1) / config.updates if config.decay else 1.0
        for optimizer, rate in rates.items():
            optimizer.param_groups[0]["lr"] = rate * remaining

        if (update - 1) % config.g_updates == 0:
            real, z = minibatch()
            with torch.no_grad():
                fake = G(z)
            loss_D = d_loss(D, real, fake)
            opt_D.zero_grad()
            loss_D.backward()
            opt_D.step()
            past.see(D)

        real, z = minibatch()
        fake = G(z)
        loss_G = unrolled(
            real,
            fake,
            steps=config.unroll if (update - 1) % config.every == 0 else 0,
            resample=another if config.resample else None,
        )
        opt_G.zero_grad()
        loss_G.backward()
        opt_G.step()
        yield update, loss_D.detach() / seeds, loss_G.detach() / seeds


def run(config: Config, device: torch.device, path: Path, save_every: int, report: Callable[..., None]) -> None:
    """A setting from its checkpoint, or from nothing, to its end.

    Args:
        config: The setting.
        device: Where to train.
        path: The checkpoint; the history goes beside it as JSON.
        save_every: Generator updates between two checkpoints.
        report: Takes the state of the run, for the progress bar.
    """
    parts = build(config, device)
    progress = checkpoint.resume(path, asdict(config), parts._asdict())
    before, began = progress.get("cpu_seconds", 0.0), time.process_time()

    noise = evaluation_noise(10_000, config.noise, device).expand(len(config.seeds), -1, -1)
    centers = centers_of(config).to(device)
    columns = snapshot_updates(config.updates, config.columns)

    training = train(config, parts, progress["update"], device)
    for update, losses in resumable(
        training, path, asdict(config), parts, progress, save_every=save_every, report=report
    ):
        with torch.no_grad():
            samples = parts.G(noise)
        if update in columns:
            progress["snapshots"][update] = samples[0].cpu()
        point = {"update": update}
        for seed, drawn in zip(config.seeds, samples, strict=True):
            point[f"modes_seed{seed}"] = modes_covered(drawn, centers, config.std)
        for seed, drawn in zip(config.seeds, samples, strict=True):
            point[f"within_3_std_seed{seed}"] = round(share_within(drawn, centers, config.std), 4)
        progress["history"].append({**point, **losses})
        # Of this process, whatever else the machine does meanwhile.
        progress["cpu_seconds"] = before + time.process_time() - began


def centers_of(config: Config) -> Tensor:
    """The means, one row per mode."""
    return square_centers() if config.square else ring_centers(config.modes, config.radius)
