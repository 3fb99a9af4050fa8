"""What is around the loops of the scripts: networks with their optimizers, checkpoints, evaluations, events."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from common import checkpoint, distributed
from common.data import to_bytes
from common.files import write_json
from unroll_wrap import Objective

# Draws `real` and the noise of `fake`, anew for every update of either player.
Minibatch = Callable[[], tuple[Tensor, Tensor]]
# The number of generator updates made, and both losses.
Training = Iterator[tuple[int, Tensor, Tensor]]
SHOWN = 36  # samples kept of every moment that a figure shows


class Players(NamedTuple):
    """Everything that training changes."""

    G: nn.Module
    D: nn.Module
    opt_G: torch.optim.Adam
    opt_D: torch.optim.Adam


def with_adam(
    G: nn.Module, D: nn.Module, device: torch.device, *, g_lr: float, d_lr: float, betas: tuple[float, float]
) -> Players:
    """Both networks on the device, each with its Adam.

    Convolutions keep their weights in NHWC, which takes a third from a plain update on CIFAR-10 on a CPU, and a tenth
    on stacked digits.
    """
    G, D = (net.to(device, memory_format=torch.channels_last) for net in (G, D))
    opt_G = torch.optim.Adam(G.parameters(), lr=g_lr, betas=betas)
    opt_D = torch.optim.Adam(D.parameters(), lr=d_lr, betas=betas)
    return Players(G, D, opt_G, opt_D)


def in_one_batch(objective: Objective) -> Objective:
    """l_real, l_fake = D(cat([real, fake])): the same losses, with both halves under one normalization.

    With BatchNorm in D's first layer, two calls hide the mean and the scale of each half from D, and a grey, noisy
    background then costs the generator nothing.

    Args:
        objective: Losses that call D on `real` and on `fake`, batches of one size.

    Returns:
        Losses that call it once.
    """

    def joint(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def of(D: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
            on_real, on_fake = D(torch.cat([real, fake])).chunk(2)
            return loss(lambda batch: on_real if batch is real else on_fake, real, fake)

        return of

    return Objective(joint(objective.d_loss), joint(objective.g_loss))


def resumable(
    training: Training,
    path: Path,
    config: Mapping[str, Any],
    players: Players,
    progress: dict[str, Any],
    *,
    save_every: int,
    report: Callable[[tuple[int, str]], None],
) -> Iterator[tuple[int, dict[str, float]]]:
    """Trains, and stops wherever an evaluation is due, for the caller to append it to `progress["history"]`.

    The history goes to a JSON file and to TensorBoard events, both beside the checkpoint. Evaluations are due at the
    multiples of `evaluate_every`, at the `columns` of the figure and at the end. Of several processes, all but the
    first only train.

    Args:
        training: Yields the number of generator updates made and both losses.
        path: The checkpoint.
        config: The run's configuration in plain values, with the two names above and `updates`.
        players: What `training` changes.
        progress: What `checkpoint.resume` returned.
        save_every: Generator updates between two checkpoints.
        report: Takes the updates made and the state of the run in words.

    Yields:
        The number of generator updates made, 0 for the untrained networks, and the losses then.
    """
    if not distributed.first():
        for _ in training:
            pass
        return
    updates, history = config["updates"], progress["history"]
    due = {*range(0, updates, config["evaluate_every"]), *snapshot_updates(updates, config["columns"])}
    began, seconds_before = time.monotonic(), progress["seconds"]
    reported, written = began, len(history)
    # Events that a killed run wrote after its last checkpoint are written again.
    events = SummaryWriter(path.with_suffix(""), purge_step=progress["update"] + 1 if history else None)

    def save(update: int) -> None:
        progress.update(update=update, seconds=seconds_before + time.monotonic() - began)
        record = {"config": dict(config), "seconds": progress["seconds"], "history": history}
        # First the record: whoever finds a finished checkpoint then finds the whole record beside it.
        write_json(path.with_suffix(".json"), record)
        events.flush()
        checkpoint.save(path, config, players._asdict(), progress)

    with events:
        if progress["update"] == 0:
            yield 0, {}
        for update, loss_D, loss_G in training:
            if update in due:
                yield update, {"d_loss": loss_D.item(), "g_loss": loss_G.item()}
            for point in history[written:]:
                for name, value in point.items():
                    if name != "update":
                        events.add_scalar(name, value, point["update"])
            written = len(history)
            last = update == updates
            if last or update % save_every == 0:
                save(update)
            if last or time.monotonic() - reported > 0.2:
                reported = time.monotonic()
                report((update, _state(history[-1])))


def train_on_images(
    config: Any,
    players: Players,
    train: Callable[[Any, Players, Minibatch, int], Training],
    draw: Callable[[], Tensor],
    path: Path,
    *,
    save_every: int,
    report: Callable[[tuple[int, str]], None],
) -> Iterator[tuple[dict[str, float], Iterator[Tensor]]]:
    """A script's own loop, resumable, from the checkpoint at `path` or from nothing, with snapshots for the figure.

    G stays in training mode where it is evaluated: its BatchNorm sees batches of the size that it is trained on.

    Args:
        config: A dataclass with `updates`, `batch`, `noise`, `samples`, `evaluate_every` and `columns`.
        players: Networks and optimizers, updated in place.
        train: The loop: from the run, the players, a function that draws a minibatch and the updates made already, to
            the updates made since and both losses.
        draw: A batch of real images.
        path: The checkpoint.
        save_every: Generator updates between two checkpoints.
        report: Takes the updates made and the state of the run in words.

    Yields:
        A point of the history, for the caller to complete, and samples of G in batches.
    """
    progress = checkpoint.resume(path, asdict(config), players._asdict())
    device = next(players.G.parameters()).device
    columns = snapshot_updates(config.updates, config.columns)
    noise = evaluation_noise(config.samples, config.noise, device).split(config.batch)

    def minibatch() -> tuple[Tensor, Tensor]:
        return distributed.share(draw()), distributed.share(torch.randn(config.batch, config.noise, device=device))

    def samples() -> Iterator[Tensor]:
        for z in noise:
            with torch.no_grad():
                yield players.G(z)

    training = train(config, players, minibatch, progress["update"])
    for update, losses in resumable(
        training, path, asdict(config), players, progress, save_every=save_every, report=report
    ):
        report((0, "measuring"))
        if update in columns:
            batches = islice(samples(), math.ceil(SHOWN / config.batch))
            progress["snapshots"][update] = to_bytes(torch.cat(list(batches)))[:SHOWN]
        point = {"update": update, **losses}
        progress["history"].append(point)
        yield point, samples()


def evaluation_noise(samples: int, length: int, device: torch.device) -> Tensor:
    """Z ~ N(0, I), the same at every evaluation of every run.

    A generator of its own keeps evaluation from shifting the random numbers that training draws.
    """
    generator = torch.Generator().manual_seed(2017)
    return torch.randn(samples, length, generator=generator).to(device)


def snapshot_updates(updates: int, columns: int) -> list[int]:
    """A figure's columns: evenly spaced from the untrained generator to the last update."""
    return sorted({round(updates * column / (columns - 1)) for column in range(columns)})


def _state(point: Mapping[str, Any]) -> str:
    """The first measure of an evaluation, in words."""
    name, value = next(item for item in point.items() if item[0] not in ("update", "d_loss", "g_loss"))
    return f"{value:.4g} {name.replace('_', ' ')} at {point['update']:,}"
