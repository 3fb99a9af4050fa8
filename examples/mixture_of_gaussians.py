"""The ring of Gaussians: section 3.1, Appendix A and Figure 2 of Metz et al., Unrolled GANs (ICLR 2017).

    θ_G ← θ_G - η d f_K(θ_G, θ_D) / d θ_G,      θ_D ← θ_D + η d f(θ_G, θ_D) / d θ_D

A small generator has to cover eight narrow Gaussians on a circle. Trained as usual (K = 0) it sits on one of
them and wanders to the next; trained against a discriminator that has reacted for K = 10 steps it covers them
all. One command trains every K with every seed, in parallel processes, and compares them in a table and in a
figure in the manner of Figure 2.

Where Appendix A is silent: the batch is 512 (that of the authors' notebook), beta2 is 0.999, biases start at
zero, the hidden layer of D has 128 units and orthogonal weights as G's have, D moves first, and every update
of either player draws a new minibatch, which the K unrolled steps share (the paper's "fixed minibatch").
Steps are counted in generator updates.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common import arguments, checkpoint
from common.arguments import OBJECTIVES
from common.data import ring_centers, sample_mixture
from common.experiment import Preset, records, train_missing, updates_done
from common.metrics import modes_covered, share_within
from common.nets import Scale, mlp
from common.plots import density_grid
from common.report import markdown_table, write_report
from common.training import Players, evaluation_noise, resumable, snapshot_updates, with_adam
from unroll_wrap import UnrolledGeneratorLoss

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}


@dataclass(frozen=True)
class Config:
    """One run. The defaults are Appendix A."""

    unroll: int = 10
    seed: int = 0
    updates: int = 25_000  # of the generator
    # data
    modes: int = 8
    radius: float = 2.0
    std: float = 0.02
    seven_modes: bool = False  # angles that include 2π: the last mode falls on the first
    # nets
    noise: int = 256
    g_hidden: tuple[int, ...] = (128, 128)
    d_hidden: tuple[int, ...] = (128,)
    activation: str = "relu"
    gain: float = 0.8
    d_scale: float = 0.25  # D sees x / 4
    # training
    objective: str = "minimax"
    simultaneous: bool = False  # both gradients at the same point, from one minibatch
    batch: int = 512
    g_lr: float = 1e-4
    d_lr: float = 1e-4
    decay: bool = False  # both rates fall linearly to zero over the run
    betas: tuple[float, float] = (0.5, 0.999)
    # what is looked at
    evaluate_every: int = 250
    columns: int = 6  # moments of training in the figure


PRESETS = {
    # Appendix A.
    "paper": Preset(Config(), (0, 10), (0,)),
    # The authors' public notebook (poolio/unrolled_gan), whose settings differ from the paper's.
    "notebook": Preset(
        Config(
            radius=1.0,
            std=0.01,
            d_hidden=(128, 128),
            activation="tanh",
            gain=1.4,
            d_scale=1.0,
            simultaneous=True,
            g_lr=1e-3,
        ),
        (0, 5),
        (0,),
    ),
    # Appendix A made short: thirty times the rates, which then have to fall for the modes to become narrow.
    # Smaller batches are hardly cheaper, nets of this size being bound by the number of calls, and learn slower.
    "demo": Preset(Config(updates=1500, g_lr=3e-3, d_lr=3e-3, decay=True, evaluate_every=100), (0, 10), (0,)),
}


def networks(config: Config) -> tuple[nn.Module, nn.Module]:
    """G: z → 128 → 128 → 2 and D: x · d_scale → hidden → 1 logit."""
    activation = ACTIVATIONS[config.activation]
    G = mlp((config.noise, *config.g_hidden, 2), activation, gain=config.gain)
    D = mlp((2, *config.d_hidden, 1), activation, gain=config.gain)
    return G, nn.Sequential(Scale(config.d_scale), D)


def train(config: Config, players: Players, done: int, device: torch.device) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Plain PyTorch, with the unrolled loss in the place of the generator's own.

    Args:
        config: The run.
        players: Networks and optimizers, updated in place.
        done: Generator updates made already, by the run that this one resumes.
        device: Where the networks are.

    Yields:
        The number of generator updates made, and both losses.
    """
    G, D, opt_G, opt_D = players
    d_loss, g_loss = OBJECTIVES[config.objective]
    unrolled = UnrolledGeneratorLoss(D, opt_D, d_loss, g_loss, steps=config.unroll)  # beside the optimizers

    centers = centers_of(config).to(device)

    def minibatch() -> tuple[Tensor, Tensor]:
        real = sample_mixture(config.batch, centers, config.std)
        return real, torch.randn(config.batch, config.noise, device=device)

    for update in range(done + 1, config.updates + 1):
        remaining = 1 - (update - 1) / config.updates if config.decay else 1.0
        opt_G.param_groups[0]["lr"] = config.g_lr * remaining
        opt_D.param_groups[0]["lr"] = config.d_lr * remaining

        if not config.simultaneous:
            real, z = minibatch()
            with torch.no_grad():
                fake = G(z)
            loss_D = d_loss(D, real, fake)
            opt_D.zero_grad()
            loss_D.backward()
            opt_D.step()

        real, z = minibatch()
        fake = G(z)
        loss_G = unrolled(real, fake)  # in the place of g_loss(D, real, fake)
        opt_G.zero_grad()
        loss_G.backward()

        if config.simultaneous:
            loss_D = d_loss(D, real, fake.detach())
            opt_D.zero_grad()
            loss_D.backward()
            opt_D.step()

        opt_G.step()
        yield update, loss_D.detach(), loss_G.detach()


def run(config: Config, device: torch.device, path: Path, save_every: int, report: Callable[..., None]) -> None:
    """One run from its checkpoint, or from nothing, to its end.

    Args:
        config: The run.
        device: Where to train.
        path: The checkpoint; the history goes beside it as JSON.
        save_every: Generator updates between two checkpoints.
        report: Takes the state of the run, for the progress bar.
    """
    torch.manual_seed(config.seed)
    rates = {"g_lr": config.g_lr, "d_lr": config.d_lr, "betas": config.betas}
    players = with_adam(*networks(config), device, **rates)
    progress = checkpoint.resume(path, asdict(config), players._asdict())

    noise = evaluation_noise(10_000, config.noise, device)
    centers = distinct_centers(config).to(device)
    columns = snapshot_updates(config.updates, config.columns)

    training = train(config, players, progress["update"], device)
    for update, losses in resumable(
        training, path, asdict(config), players, progress, save_every=save_every, report=report
    ):
        with torch.no_grad():
            samples = players.G(noise)
        if update in columns:
            progress["snapshots"][update] = samples.cpu()
        modes = modes_covered(samples, centers, config.std)
        within = share_within(samples, centers, config.std)
        progress["history"].append({"update": update, "modes": modes, "within_3_std": round(within, 4), **losses})


def centers_of(config: Config) -> Tensor:
    """The means to draw from, one row per mode."""
    return ring_centers(config.modes, config.radius, endpoint=config.seven_modes)


def distinct_centers(config: Config) -> Tensor:
    """The means to count: seven where the eighth repeats the first."""
    return centers_of(config)[: config.modes - config.seven_modes]


def run_path(out: Path, config: Config) -> Path:
    """The checkpoint of a run; its metrics over training are in the JSON file of the same name."""
    return out / "runs" / f"k{config.unroll}-seed{config.seed}.pt"


def summarise(config: Config, progress: dict[str, Any]) -> dict[str, Any]:
    """A row of the table: the last evaluation, and when all modes were first covered at once."""
    history = progress["history"]
    every_mode = [point["update"] for point in history if point["modes"] == len(distinct_centers(config))]
    return {
        "unroll": config.unroll,
        "seed": config.seed,
        "modes": history[-1]["modes"],
        "most_modes": max(point["modes"] for point in history),
        "within_3_std": history[-1]["within_3_std"],
        "updates_until_all_modes": every_mode[0] if every_mode else None,
        "seconds": round(progress["seconds"], 1),
    }


def write_results(args: argparse.Namespace, runs: Mapping[Path, Config], seconds: float) -> None:
    """Table, summary and figures of the runs that have a checkpoint.

    Args:
        args: The command line.
        runs: The runs by their checkpoint, in the order of the table.
        seconds: Time that this command took.
    """
    found = list(records(runs))
    rows = [summarise(config, progress) for config, progress in found]

    modes = len(distinct_centers(found[0][0]))
    header = ["K", "seed", "modes", "most", "within 3 std", f"updates until {modes}", "seconds"]
    cells = []
    for row in rows:
        first = row["updates_until_all_modes"]
        cells.append([
            row["unroll"],
            row["seed"],
            f"{row['modes']} of {modes}",
            row["most_modes"],
            f"{row['within_3_std']:.1%}",
            "never" if first is None else f"{first:,}",
            f"{row['seconds']:.0f}",
        ])
    write_report(args, runs, found, markdown_table(header, cells), rows, seconds)

    config = found[0][0]
    torch.manual_seed(0)
    data = sample_mixture(10_000, centers_of(config), config.std)
    seeds = list(dict.fromkeys(config.seed for config, _ in found))
    for seed in seeds:
        figure = args.out / ("figure.png" if seed == seeds[0] else f"figure-seed{seed}.png")
        # Unrolled above plain, as in the paper.
        lines = [
            (f"K = {config.unroll}", list(progress["snapshots"].values()))
            for config, progress in reversed(found)
            if config.seed == seed
        ]
        density_grid(
            figure,
            lines,
            [f"{update:,}" for update in snapshot_updates(config.updates, config.columns)],
            data,
            extent=1.5 * config.radius,
            bandwidth=0.05 * config.radius,
            title=f"seed {seed}",
        )
        print(f"Figure: {figure}")


def main(argv: Sequence[str] | None = None) -> int:
    """Trains what is missing of the grid and writes the results."""
    began = time.monotonic()
    parser, what = arguments.experiment_parser(
        "mixture_of_gaussians",
        PRESETS,
        "demo",
        description="Train GANs on a ring of eight Gaussians, plain (K = 0) and unrolled (K > 0), and\n"
        "compare them in a table and a figure (Unrolled GANs, section 3.1 and Figure 2).",
        epilog="""presets:
  demo      Appendix A made short, at higher rates: both runs in some three minutes on two cores
  paper     Appendix A, 25,000 generator updates: one to two hours a run at K = 10
  notebook  the authors' public notebook: other nets and rates, simultaneous updates, K = 5

examples:
  python examples/mixture_of_gaussians.py
  python examples/mixture_of_gaussians.py --preset paper --unroll 0 10 --seeds 0 1 2 --resume
  python examples/mixture_of_gaussians.py --preset notebook --seven-modes

The controls of Appendix B, and what goes beyond them: python research/study.py --help""",
    )
    what.add_argument(
        "--seven-modes",
        action="store_true",
        help="put the modes at linspace(0, 2π, 8) as the notebook does: two of the eight coincide",
    )
    args = arguments.parse(parser, "mixture_of_gaussians", argv)
    configs = PRESETS[args.preset].configs(args, seven_modes=args.seven_modes)
    runs = {run_path(args.out, config): config for config in configs}
    done = updates_done(parser, args, runs)
    if not args.report and not train_missing(args, runs, done, run):
        return 1
    write_results(args, runs, time.monotonic() - began)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
