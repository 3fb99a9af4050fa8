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
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from common import arguments, checkpoint
from common.data import ring_centers, sample_mixture
from common.files import write_json, write_text
from common.grid import Failure, run_grid
from common.metrics import modes_covered, share_within
from common.nets import Scale, mlp
from common.plots import density_grid
from common.progress import progress_bar
from common.report import markdown_table, provenance, usable_cores
from unroll_wrap import UnrolledGeneratorLoss, minimax, non_saturating

OBJECTIVES = {"minimax": minimax, "non_saturating": non_saturating}
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
    "paper": Config(),
    # The authors' public notebook (poolio/unrolled_gan), whose settings differ from the paper's.
    "notebook": Config(
        unroll=5,
        radius=1.0,
        std=0.01,
        d_hidden=(128, 128),
        activation="tanh",
        gain=1.4,
        d_scale=1.0,
        simultaneous=True,
        g_lr=1e-3,
    ),
    # Appendix A made short: thirty times the rates, which then have to fall for the modes to become narrow.
    # Smaller batches are hardly cheaper, nets of this size being bound by the number of calls, and learn slower.
    "demo": Config(updates=1500, g_lr=3e-3, d_lr=3e-3, decay=True, evaluate_every=100),
}


class Players(NamedTuple):
    """Everything that training changes."""

    G: nn.Module
    D: nn.Module
    opt_G: torch.optim.Adam
    opt_D: torch.optim.Adam


def build(config: Config, device: torch.device) -> Players:
    """G: z → 128 → 128 → 2 and D: x · d_scale → hidden → 1 logit, each with its Adam."""
    activation = ACTIVATIONS[config.activation]
    G = mlp((config.noise, *config.g_hidden, 2), activation, gain=config.gain).to(device)
    D = mlp((2, *config.d_hidden, 1), activation, gain=config.gain)
    D = nn.Sequential(Scale(config.d_scale), D).to(device)
    opt_G = torch.optim.Adam(G.parameters(), lr=config.g_lr, betas=config.betas)
    opt_D = torch.optim.Adam(D.parameters(), lr=config.d_lr, betas=config.betas)
    return Players(G, D, opt_G, opt_D)


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


def run(config: Config, device: torch.device, path: Path, save_every: int, report: Callable[[dict], None]) -> None:
    """One run from its checkpoint, or from nothing, to its end: evaluates, saves, reports.

    Args:
        config: The run.
        device: Where to train.
        path: The checkpoint; the history goes beside it as JSON.
        save_every: Generator updates between two checkpoints.
        report: Takes the state of the run, for the progress bar.
    """
    torch.manual_seed(config.seed)
    players = build(config, device)
    parts = players._asdict()
    state = checkpoint.load(path, asdict(config))
    progress: dict[str, Any] = {"update": 0, "history": [], "snapshots": {}, "seconds": 0.0}
    if state is not None:
        progress = checkpoint.restore(state, parts)
    history, snapshots = progress["history"], progress["snapshots"]

    # A generator of its own keeps evaluation from shifting the random numbers that training draws.
    generator = torch.Generator().manual_seed(2017)
    evaluation_noise = torch.randn(10_000, config.noise, generator=generator).to(device)
    centers = distinct_centers(config).to(device)

    def evaluate(update: int, **losses: float) -> None:
        with torch.no_grad():
            samples = players.G(evaluation_noise)
        if update in snapshot_updates(config):
            snapshots[update] = samples.cpu()
        modes = modes_covered(samples, centers, config.std)
        within = share_within(samples, centers, config.std)
        history.append({"update": update, "modes": modes, "within_3_std": round(within, 4), **losses})

    def save(update: int) -> None:
        progress.update(update=update, seconds=seconds_before + time.monotonic() - began)
        record = {"config": asdict(config), "seconds": progress["seconds"], "history": history}
        # First the record: whoever finds a finished checkpoint then finds the whole record beside it.
        write_json(path.with_suffix(".json"), record)
        checkpoint.save(path, asdict(config), parts, progress)

    began, seconds_before = time.monotonic(), progress["seconds"]
    reported = began
    done = progress["update"]
    if done == 0:
        evaluate(0)
    for update, loss_D, loss_G in train(config, players, done, device):
        last = update == config.updates
        if last or update % config.evaluate_every == 0 or update in snapshot_updates(config):
            evaluate(update, d_loss=loss_D.item(), g_loss=loss_G.item())
        if last or update % save_every == 0:
            save(update)
        if last or time.monotonic() - reported > 0.2:
            reported = time.monotonic()
            report({"update": update, "modes": history[-1]["modes"]})


def centers_of(config: Config) -> Tensor:
    """The means to draw from, one row per mode."""
    return ring_centers(config.modes, config.radius, endpoint=config.seven_modes)


def distinct_centers(config: Config) -> Tensor:
    """The means to count: seven where the eighth repeats the first."""
    return centers_of(config)[: config.modes - config.seven_modes]


def snapshot_updates(config: Config) -> list[int]:
    """The figure's columns: evenly spaced from the untrained generator to the last update."""
    return sorted({round(config.updates * column / (config.columns - 1)) for column in range(config.columns)})


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


def write_results(out: Path, configs: Sequence[Config], device: torch.device, wall: float) -> None:
    """Table, summary and figures of finished runs, from their checkpoints.

    Args:
        out: The folder of the results.
        configs: The runs, in the order of the table.
        device: Where they were trained.
        wall: Seconds that this command took.
    """
    finished = []
    for config in configs:
        state = checkpoint.load(run_path(out, config), asdict(config))
        assert state is not None, "a run that ended well has a checkpoint"
        finished.append((config, state["progress"]))
    rows = [summarise(config, progress) for config, progress in finished]

    modes = len(distinct_centers(configs[0]))
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
    table = markdown_table(header, cells)
    write_text(out / "table.md", table)
    print(f"\n{table}")

    shared = asdict(configs[0])
    del shared["unroll"], shared["seed"]
    seconds = {"training": round(sum(row["seconds"] for row in rows), 1), "command": round(wall, 1)}
    summary = {**provenance(device), "seconds": seconds, "config": shared, "runs": rows}
    write_json(out / "summary.json", summary)

    torch.manual_seed(0)
    data = sample_mixture(10_000, centers_of(configs[0]), configs[0].std)
    seeds = list(dict.fromkeys(config.seed for config in configs))
    for seed in seeds:
        figure = out / ("figure.png" if seed == seeds[0] else f"figure-seed{seed}.png")
        # Unrolled above plain, as in the paper.
        lines = [
            (f"K = {config.unroll}", list(progress["snapshots"].values()))
            for config, progress in reversed(finished)
            if config.seed == seed
        ]
        density_grid(
            figure,
            lines,
            [f"{update:,}" for update in snapshot_updates(configs[0])],
            data,
            extent=1.5 * configs[0].radius,
            bandwidth=0.05 * configs[0].radius,
        )
        print(f"Figure: {figure}")
    print(f"Summary: {out / 'summary.json'}")


def parse(argv: Sequence[str] | None = None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The command line."""
    parser = argparse.ArgumentParser(
        usage="python examples/mixture_of_gaussians.py [--preset NAME] [--unroll K ...] [--seeds SEED ...] [...]",
        description="Train GANs on a ring of eight Gaussians, plain (K = 0) and unrolled (K > 0), and\n"
        "compare them in a table and a figure (Unrolled GANs, section 3.1 and Figure 2).",
        epilog="""presets:
  demo      Appendix A made short, at higher rates: both runs in one to two minutes on two cores
  paper     Appendix A, 25,000 generator updates: 10 to 40 minutes a run at K = 10
  notebook  the authors' public notebook: other nets and rates, simultaneous updates, K = 5

examples:
  python examples/mixture_of_gaussians.py
  python examples/mixture_of_gaussians.py --preset paper --unroll 0 10 --seeds 0 1 2 --resume
  python examples/mixture_of_gaussians.py --preset notebook --seven-modes

Finished runs in --out are kept and only what is missing is trained.""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what to train")
    what.add_argument("--preset", choices=PRESETS, default="demo", help="see below (default: demo)")
    what.add_argument(
        "--unroll",
        nargs="+",
        metavar="K",
        type=arguments.whole_number(0, "0 is plain GAN training."),
        help="unrolled steps of D, one or several (default: 0 and the preset's own)",
    )
    what.add_argument(
        "--seed",
        "--seeds",
        dest="seeds",
        nargs="+",
        metavar="SEED",
        default=[0],
        type=arguments.whole_number(0, "Every seed is a run for every K."),
        help="seeds, one or several (default: 0)",
    )
    what.add_argument(
        "--steps",
        metavar="N",
        type=arguments.whole_number(1, "Leave --steps out for the preset's own number."),
        help="generator updates of every run (default: the preset's)",
    )
    what.add_argument("--objective", choices=OBJECTIVES, help="the players' losses (default: minimax)")
    what.add_argument(
        "--seven-modes",
        action="store_true",
        help="put the modes at linspace(0, 2π, 8) as the notebook does: two of the eight coincide",
    )
    where = parser.add_argument_group("where and how")
    where.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of checkpoints and results (default: out/mixture_of_gaussians/PRESET)",
    )
    existing = where.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="go on with unfinished runs, bit for bit")
    existing.add_argument("--restart", action="store_true", help="throw away what --out holds of these runs")
    where.add_argument(
        "--device",
        type=arguments.device,
        default="cpu",
        help="cpu (default; these nets are too small to gain from a GPU), cuda, cuda:1, ...",
    )
    where.add_argument(
        "--workers",
        metavar="N",
        type=arguments.whole_number(1, "Leave --workers out for one a core."),
        help="runs at a time, each in its own process (default: one a core)",
    )
    where.add_argument(
        "--threads",
        metavar="N",
        default=1,
        type=arguments.whole_number(1, "1 is the fastest for nets of this size."),
        help="threads per run (default: 1)",
    )
    where.add_argument(
        "--save-every",
        metavar="N",
        default=500,
        type=arguments.whole_number(1, "Leave --save-every out for 500."),
        help="generator updates between checkpoints (default: 500)",
    )
    return parser, parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Trains what is missing of the grid and writes the results."""
    began = time.monotonic()
    parser, args = parse(argv)
    base = replace(PRESETS[args.preset], seven_modes=args.seven_modes)
    base = replace(base, updates=args.steps or base.updates, objective=args.objective or base.objective)
    out: Path = args.out or Path("out", "mixture_of_gaussians", args.preset)
    configs = [
        replace(base, unroll=unroll, seed=seed)
        for unroll in sorted(set(args.unroll or (0, base.unroll)))
        for seed in dict.fromkeys(args.seeds)
    ]

    # Refusals come before the first update, not after the first finished run.
    done = []
    try:
        (out / "runs").mkdir(parents=True, exist_ok=True)
        for config in configs:
            path = run_path(out, config)
            if args.restart:
                path.unlink(missing_ok=True)
            state = checkpoint.load(path, asdict(config))
            done.append(state["progress"]["update"] if state else 0)
            if 0 < done[-1] < config.updates and not args.resume:
                parser.error(
                    f"{path} stands at {done[-1]:,} of {config.updates:,} updates. Give --resume to go on "
                    f"from there, --restart to begin again, or another --out."
                )
    except checkpoint.CheckpointError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"--out {out} cannot be used: {error}. Give a folder that can be written to.")

    # In units of one gradient: an update is one of each player, and an unrolled step costs about four.
    cost = [2 + 4 * config.unroll for config in configs]
    missing = [index for index, config in enumerate(configs) if done[index] < config.updates]
    missing.sort(key=lambda index: -cost[index] * (configs[index].updates - done[index]))
    jobs = [(configs[i], args.device, run_path(out, configs[i]), args.save_every) for i in missing]
    workers = args.workers or max(1, usable_cores() // args.threads)
    failures, states = [], dict[int, str]()
    total = sum(cost[index] * (configs[index].updates - done[index]) for index in missing)
    try:
        with progress_bar(total, f"{len(missing)} of {len(configs)} runs") as bar:
            for job, message in run_grid(run, jobs, workers=workers, threads=args.threads):
                index = missing[job]
                config = configs[index]
                if isinstance(message, Failure):
                    failures.append(f"K={config.unroll} seed {config.seed} failed: {message.reason}")
                    continue
                if bar.n == 0:
                    # The time that the processes take to start says nothing about the time left.
                    bar.unpause()
                update, modes = message["update"], message["modes"]
                states[index] = f"K={config.unroll} seed {config.seed}: {modes} modes at {update:,}"
                bar.set_postfix_str(", ".join(states.values()), refresh=False)
                bar.update(cost[index] * (update - done[index]))
                done[index] = update
                if done[index] == config.updates:
                    del states[index]
    except KeyboardInterrupt:
        failures.append("Stopped.")
    if failures:
        failures.append(f"Finished runs in {out} stay. Repeat the command with --resume to go on.")
        print("\n".join(failures), file=sys.stderr)
        return 1
    write_results(out, configs, args.device, time.monotonic() - began)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
