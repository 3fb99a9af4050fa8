"""Diversity of a standard model: section 3.4, Appendices D and G and Table 3 of Metz et al., Unrolled GANs (ICLR 2017).

    z* = argmin_z ‖G(z) - x‖²,      ‖G(z) - G(z')‖ beside ‖x - x'‖

A DCGAN of CIFAR-10 trains without unrolling; does unrolling make it more diverse? Inference via optimization (3.4.1)
asks how near the generator comes to images of the training set: L-BFGS over z from three random starts, with a line
search for every image. Pairwise distances (3.4.2) compare how far apart two samples are, in the data and in the model;
their gap is the Wasserstein-1 distance between both distributions. One command trains every K with every seed.

How Appendix D was read: its table calls the generator's layers convolutions and the discriminator's transposed ones;
their strides only fit the other way round. The generator's loss, printed as log D(G(z)), is read as the non-saturating
-log D(G(z)); --objective minimax takes Eq. 4's f. 100,000 steps of one network each are 50,000 generator updates.

How Table 3 is counted: "Percent Best Rank" is the share of targets on which a K has the lowest error of all K of its
seed, a mean over seeds. The table prints 63 % for K = 0, so that its row adds up to 162 %; with 0.63 % it adds up to
100.00 %, and the text has "less than 1% of the time". Here equal errors share the image, so that the row always adds
up, and a seed counts when all K of it are finished. Errors are means over pixels and colours in [-1, 1]; the paper does
not give its scale, so that ours compare with each other only.

Where it is silent: beta1 is 0.5 as in A and C; beta2 0.999; the batch is 128, DCGAN's; the output is tanh and carries
no BatchNorm; weights start as torch's layers do; D moves first, every update of either player draws a new minibatch,
which the K unrolled steps share; D normalises real and fake samples in one batch (in two with --apart). Where G is
inverted its BatchNorm uses its running statistics: an image must not depend on the others of its batch.

Beside the paper, on features of a classifier that is trained here: FID, and precision and density (are samples like
images?), recall and coverage (are images like samples?). Precision, density and coverage flatter a generator whose
samples are all alike, and the table leaves them out where recall is not above 0.05. The data's row compares images of
the test set with images of the training set.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy.stats import wasserstein_distance
from torch import Tensor, nn

from common import arguments, checkpoint, distributed
from common.arguments import BACKWARDS, OBJECTIVES
from common.cifar import load_images, sample_images
from common.classifier import OBJECTS, classifier, extractor, features, prepare
from common.data import to_bytes, to_pixels
from common.experiment import Preset, records, train_missing, updates_done
from common.fidelity import fidelity, frechet_distance, pair_distances
from common.grid import Failure, run_grid
from common.inversion import nearest
from common.nets import conv_discriminator, conv_generator
from common.plots import distance_histograms, image_table, reconstructions
from common.report import (
    draw_figures,
    markdown_table,
    mean_and_error,
    over_seeds,
    summarise,
    usable_cores,
    write_report,
)
from common.training import (
    Minibatch,
    Players,
    Training,
    evaluation_noise,
    in_one_batch,
    train_on_images,
    with_adam,
)
from unroll_wrap import UnrolledGeneratorLoss

MEASURES = {"fid": 1, "gap": 2, "precision": 2, "recall": 2, "density": 2, "coverage": 2}  # with the digits to print
PAIRS = 10_000  # of samples, for their distances
# Samples that are all alike lie near some image: what is near to images says something only where images are also near
# to samples.
LEAST_RECALL = 0.05
ALWAYS = ("fid", "gap", "recall")

# Table 3: average MSE, mean and standard error, and best rank in percent by K; 63 is read as 0.63, see above.
TABLE_3 = {
    0: ("0.0231 ± 0.0024", "0.63"),
    1: ("0.0195 ± 0.0021", "22.97"),
    5: ("0.0200 ± 0.0023", "15.31"),
    10: ("0.0181 ± 0.0018", "61.09"),
}


@dataclass(frozen=True)
class Config:
    """One run. The defaults are Appendix D."""

    unroll: int = 10
    seed: int = 0
    updates: int = 50_000  # of the generator
    # nets
    size: float = 1.0  # of both: 1 is Appendix D
    noise: int = 256
    # training
    objective: str = "non_saturating"
    one_batch: bool = True  # D normalises real and fake samples together
    backward: str = "store"
    batch: int = 128
    g_lr: float = 1e-4
    d_lr: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.999)
    bfloat16: bool = False
    # what is looked at
    samples: int = 5120
    evaluate_every: int = 2500
    columns: int = 6  # moments of training in the figure
    targets: int = 1280
    starts: int = 3
    iterations: int = 200  # of L-BFGS
    classifier_updates: int = 8000


SMOKE = Config(
    **{"updates": 6, "size": 1 / 16, "batch": 18, "samples": 128, "evaluate_every": 3, "columns": 3},
    **{"targets": 4, "starts": 2, "iterations": 3, "classifier_updates": 3},
)
CPU = Config(
    **{"updates": 5000, "size": 1 / 4, "batch": 32, "samples": 2560, "evaluate_every": 500},
    **{"targets": 64, "iterations": 50, "classifier_updates": 2000},
)
PRESETS = {
    "paper": Preset(Config(), (0, 1, 5, 10), (0, 1, 2, 3, 4)),
    # G ahead of D, with a quarter of the widths and of the batch, a tenth of the length, a 20th of the targets.
    "cpu": Preset(replace(CPU, g_lr=1e-3, d_lr=4e-4), (0, 1, 5, 10), (0, 1, 2)),
    "cpu-paper-rates": Preset(CPU, (0, 1, 5, 10), (0, 1, 2)),
    "smoke": Preset(SMOKE, (0, 1), (0,)),
}


def build(config: Config, device: torch.device) -> Players:
    """G: z → 4·4·512 → 256 → 128 → 64 → 3 and D: 3 → 64 → 128 → 256 → 1 logit, all times `size`, each with its Adam."""
    wide, *narrower = (round(config.size * channels) for channels in (512, 256, 128, 64))
    G = conv_generator(config.noise, (wide, *narrower, 3))
    D = conv_discriminator(32, (3, *reversed(narrower)))
    if config.bfloat16:
        # Parameters stay in float32, and so do images.
        forward = _in_bfloat16(G.forward, device)
        G.forward = lambda z: forward(z).float()
    return with_adam(G, D, device, g_lr=config.g_lr, d_lr=config.d_lr, betas=config.betas)


def _in_bfloat16(function: Callable[..., Tensor], device: torch.device) -> Callable[..., Tensor]:
    # Without its cache: that would keep a copy of the weights of every unrolled step.
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)(function)


def train(config: Config, players: Players, minibatch: Minibatch, done: int) -> Training:
    """Plain PyTorch, with the unrolled loss in the place of the generator's own; D moves first.

    Args:
        config: The run.
        players: Networks and optimizers, updated in place.
        minibatch: Draws `real` and the noise of `fake`, anew for every update of either player.
        done: Generator updates made already, by the run that this one resumes.

    Yields:
        The number of generator updates made, and both losses.
    """
    G, D, opt_G, opt_D = players
    objective = OBJECTIVES[config.objective]
    d_loss, g_loss = in_one_batch(objective) if config.one_batch else objective
    if config.bfloat16:
        device = next(D.parameters()).device
        d_loss, g_loss = _in_bfloat16(d_loss, device), _in_bfloat16(g_loss, device)
    unrolled = UnrolledGeneratorLoss(
        D,
        opt_D,
        d_loss,
        g_loss,
        steps=config.unroll,
        backward=BACKWARDS[config.backward],
        average_gradients=distributed.group(),  # False, but under torchrun
    )

    for update in range(done + 1, config.updates + 1):
        real, z = minibatch()
        with torch.no_grad():
            fake = G(z)
        loss_D = d_loss(D, real, fake)
        opt_D.zero_grad()
        loss_D.backward()
        distributed.average_gradients(D)
        opt_D.step()

        real, z = minibatch()
        loss_G = unrolled(real, G(z))  # in the place of g_loss(D, real, G(z))
        opt_G.zero_grad()
        loss_G.backward()
        distributed.average_gradients(G)
        opt_G.step()
        yield update, loss_D.detach(), loss_G.detach()


def run(
    config: Config,
    device: torch.device,
    path: Path,
    save_every: int,
    report: Callable[..., None],
    *,
    data: Path,
    cache: Path,
) -> None:
    """One run from its checkpoint, or from nothing, to its end."""
    report((0, "loading"))
    torch.manual_seed(config.seed)
    players = build(config, device)
    images = load_images(data, train=True).images.to(device)
    judge, _ = classifier(OBJECTS, cache, data, device, updates=config.classifier_updates)
    reference = measured(judge, [subset(images, config.samples, seed=0)])
    draw = partial(sample_images, config.batch, images)
    for point, samples in train_on_images(config, players, train, draw, path, save_every=save_every, report=report):
        point.update(compare(judge, measured(judge, samples), reference))


class Measured(NamedTuple):
    """A set of images, with their features and the distances of random pairs."""

    images: Tensor
    features: Tensor
    distances: Tensor


def measured(judge: nn.Sequential, batches: Iterable[Tensor]) -> Measured:
    """All images in one, and what is measured of them."""
    images = torch.cat(list(batches))
    return Measured(images, features(judge, images), pair_distances(images, PAIRS))


def compare(judge: nn.Sequential, model: Measured, data: Measured) -> dict[str, float]:
    """FID, the gap between the distributions of distances, and quality and diversity by nearest neighbours."""
    values = {
        "fid": frechet_distance(extractor(judge), model.images, data.images),
        "gap": float(wasserstein_distance(model.distances.cpu().numpy(), data.distances.cpu().numpy())),
        **fidelity(model.features, data.features)._asdict(),
    }
    return {name: round(value, 4) for name, value in values.items()}


def subset(images: Tensor, size: int, *, seed: int) -> Tensor:
    """As many images, the same for every run, in [-1, 1]."""
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:size]
    return to_pixels(images[chosen.to(images.device)])


def targets_of(config: Config, data: Path) -> Tensor:
    """The images of the training set that every generator is asked for."""
    return subset(load_images(data, train=True).images, config.targets, seed=2017)


def generator_of(config: Config, path: Path, device: torch.device) -> nn.Module:
    """The generator of a checkpoint, with the running statistics of its BatchNorm."""
    G = build(config, device).G
    state = checkpoint.load(path, asdict(config))
    assert state is not None
    G.load_state_dict(state["parts"]["G"])
    return G.eval().requires_grad_(False)


def invert(runs: Mapping[Path, Config], device: torch.device, report: Callable[..., None], *, data: Path) -> None:
    """The reconstructions of all targets by finished runs, each written beside its checkpoint."""
    for path, config in runs.items():
        began = time.monotonic()
        G = generator_of(config, path, device)
        targets = targets_of(config, data).to(device)
        starts = evaluation_noise(config.starts * config.targets, config.noise, device)
        found = nearest(G, targets, starts.view(config.starts, config.targets, -1), iterations=config.iterations)
        seconds = time.monotonic() - began
        progress = {"mse": found.mse.cpu(), "images": to_bytes(found.images), "seconds": seconds}
        checkpoint.save(nearest_path(path), asdict(config), {}, progress)
        report(f"{path.stem}: MSE {float(found.mse.mean()):.4f}, {seconds / config.targets:.2f} s an image")


def invert_missing(args: argparse.Namespace, runs: Mapping[Path, Config]) -> bool:
    """`invert` for every finished run that has no reconstructions yet; whether all went well."""
    missing = [item for item in runs.items() if not nearest_path(item[0]).exists()]
    if missing:
        print(f"Inference via optimization: {len(missing)} of {len(runs)} runs.", file=sys.stderr)
    workers = min(len(missing), args.workers or max(1, usable_cores() // args.threads))
    jobs = [(dict(missing[worker::workers]), args.device) for worker in range(workers)]
    failed = False
    for _, message in run_grid(partial(invert, data=args.data), jobs, workers=workers, threads=args.threads):
        failed |= isinstance(message, Failure)
        print(message.reason if isinstance(message, Failure) else message, file=sys.stderr)
    return not failed


def nearest_path(path: Path) -> Path:
    """The reconstructions of a run."""
    return path.with_suffix("") / "nearest.pt"


def best_shares(errors: Mapping[int, Tensor]) -> dict[int, float]:
    """Percent of targets on which each K has the lowest error; equal ones share the target.

    Args:
        errors: For every K, the error on each target.

    Returns:
        Numbers that add up to 100.
    """
    table = torch.stack(list(errors.values()))
    best = (table == table.min(dim=0).values).double()
    shares = 100 * (best / best.sum(dim=0)).mean(dim=1)
    return dict(zip(errors, shares.tolist(), strict=True))


def run_path(out: Path, config: Config) -> Path:
    """The checkpoint of a run; its history and its events have the same name."""
    return out / "runs" / f"k{config.unroll}-seed{config.seed}.pt"


def write_results(
    args: argparse.Namespace, runs: Mapping[Path, Config], seconds: float, judge: nn.Sequential, accuracy: float
) -> None:
    """Table, summary and figures of the runs that have a checkpoint."""
    found = list(records(runs))
    base = found[0][0]
    train, test = (load_images(args.data, train=train).images.to(args.device) for train in (True, False))
    reference = measured(judge, [subset(train, base.samples, seed=0)])
    data = compare(judge, measured(judge, [subset(test, base.samples, seed=0)]), reference)

    inverted = {config: _inverted(path, config) for path, config in runs.items() if nearest_path(path).exists()}
    ranks = _ranks(inverted, runs)
    rows = summarise(found, ("unroll", "seed"), MEASURES)
    for row, (config, _) in zip(rows, found, strict=True):
        if config in inverted:
            row["mse"] = round(float(inverted[config]["mse"].mean()), 5)
            row["seconds_per_image"] = round(inverted[config]["seconds"] / config.targets, 3)
        if config in ranks:
            row["best_rank"] = round(ranks[config], 2)

    nearness, cells = [], []
    for (unroll, when), (seeds, *values) in over_seeds(runs.values(), rows, ("unroll",), MEASURES).items():
        of_unroll = [row for row in rows if row["unroll"] == unroll]
        if when == "end":
            mse = mean_and_error([row["mse"] for row in of_unroll if "mse" in row], 4)
            rank = mean_and_error([row["best_rank"] for row in of_unroll if "best_rank" in row], 1)
            paper_mse, paper_rank = TABLE_3.get(unroll, ("", ""))
            # The rank among other rivals is another number.
            paper_rank = paper_rank if {row["unroll"] for row in rows} == {*TABLE_3} else ""
            nearness.append([unroll, seeds, mse, paper_mse, rank, paper_rank])
        suffix = "" if when == "end" else "_last_third"
        recalls = [row[f"recall{suffix}"] or 0 for row in of_unroll]
        if not recalls or statistics.fmean(recalls) <= LEAST_RECALL:
            values = [value if name in ALWAYS else "-" for name, value in zip(MEASURES, values, strict=True)]
        cells.append([unroll, when, seeds, *values])
    cells.append(["data", "", "", *(f"{data[name]:.{digits}f}" for name, digits in MEASURES.items())])
    header = ["K", "seeds", "MSE", "paper: MSE", "best rank, %", "paper: best rank, %"]
    table = markdown_table(header, nearness) + "\n" + markdown_table(["K", "when", "seeds", *MEASURES], cells)
    table += f"\nPrecision, density and coverage are left out where recall is not above {LEAST_RECALL}.\n"
    write_report(args, runs, found, table, rows, seconds, classifier_test_accuracy=round(accuracy, 4), data=data)

    panels = [("fid", "FID, classifier's features"), ("gap", "gap of pairwise distances"), ("recall", "recall")]
    if any(point["recall"] > LEAST_RECALL for _, progress in found for point in progress["history"]):
        panels += [(name, name) for name in MEASURES if name not in ALWAYS]
    draw_figures(args.out, found, panels, data, side=5)
    _draw_like_the_paper(args, runs, base, train, reference.distances, inverted)


def _inverted(path: Path, config: Config) -> dict[str, Any]:
    state = checkpoint.load(nearest_path(path), asdict(config))
    assert state is not None
    return state["progress"]


def _ranks(inverted: Mapping[Config, Mapping[str, Any]], runs: Mapping[Path, Config]) -> dict[Config, float]:
    ranks = {}
    for seed in {config.seed for config in runs.values()}:
        of_seed = [config for config in runs.values() if config.seed == seed]
        # A K that is missing would give its images to the others.
        if len(of_seed) > 1 and all(config in inverted for config in of_seed):
            shares = best_shares({config.unroll: inverted[config]["mse"] for config in of_seed})
            ranks |= {config: shares[config.unroll] for config in of_seed}
    return ranks


def _draw_like_the_paper(
    args: argparse.Namespace,
    runs: Mapping[Path, Config],
    base: Config,
    train: Tensor,
    distances: Tensor,
    inverted: Mapping[Config, Mapping[str, Any]],
) -> None:
    """Figures 4 to 6, of the runs that are finished: of the first such seed, of each seed, of all."""
    noise = evaluation_noise(base.samples, base.noise, args.device).split(base.batch)
    samples = {}
    for path, config in runs.items():
        if config in inverted:
            G = generator_of(config, path, args.device)
            samples[config] = torch.cat([G(z) for z in noise])
    if not samples:
        return
    first = next(iter(samples)).seed
    panes = [("data", subset(train, 36, seed=0))]
    panes += [(f"K = {config.unroll}", images[:36]) for config, images in samples.items() if config.seed == first]
    figures = [args.out / "figure4.png", args.out / "figure6.png"]
    captions, images = zip(*panes, strict=True)
    title = f"seed {first}, after {base.updates:,} generator updates"
    image_table(figures[0], [("", [to_bytes(pane) for pane in images])], captions, side=6, title=title)

    of_unroll: dict[str, list[Tensor]] = {}
    for config, images in samples.items():
        of_unroll.setdefault(f"K = {config.unroll}", []).append(pair_distances(images, PAIRS))
    seeds = ", ".join(map(str, dict.fromkeys(config.seed for config in samples)))
    title = f"a line for each seed ({seeds}), after {base.updates:,} generator updates"
    distance_histograms(figures[1], list(of_unroll.items()), distances, title=title)

    targets = to_bytes(targets_of(base, args.data))
    for seed in dict.fromkeys(config.seed for config in inverted):
        of_seed = {config.unroll: found for config, found in inverted.items() if config.seed == seed}
        if len(of_seed) < 2:
            continue
        plain, unrolled = (of_seed[unroll]["mse"] for unroll in (min(of_seed), max(of_seed)))
        difference = ((plain - unrolled) / (plain + unrolled)).abs()
        models = [(f"K = {unroll}", found["images"], found["mse"]) for unroll, found in sorted(of_seed.items())]
        figures.append(args.out / f"figure5-seed{seed}.png")
        chosen = difference.topk(min(8, len(difference))).indices.tolist()
        title = f"seed {seed}, after {base.updates:,} generator updates; below each image its mean squared error"
        reconstructions(figures[-1], [("target", targets, None), *models], chosen, title=title)
    print(f"Figures: {', '.join(map(str, figures))}")


def print_effect(config: Config, data: Path, device: torch.device) -> None:
    """How long an update takes with --bfloat16, and without."""
    if not config.bfloat16:
        return
    images = load_images(data, train=True).images.to(device)

    def minibatch() -> tuple[Tensor, Tensor]:
        return sample_images(config.batch, images), torch.randn(config.batch, config.noise, device=device)

    def seconds(one: Config) -> float:
        times = []
        for _ in train(one, build(one, device), minibatch, 0):
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter())
        return statistics.median(after - before for before, after in zip(times[2:-1], times[3:], strict=True))

    short = replace(config, updates=8)
    plain = seconds(replace(short, bfloat16=False))
    print(f"bfloat16: {seconds(short):.4f} s an update at K = {config.unroll}; without, {plain:.4f} s.")


def main(argv: Sequence[str] | None = None) -> int:
    """Trains what is missing of the grid, inverts what is trained, and writes the results."""
    began = time.monotonic()
    parser, what = arguments.experiment_parser(
        "cifar10",
        PRESETS,
        "cpu",
        description="Train DCGANs on CIFAR-10, plain (K = 0) and unrolled (K > 0), and measure how diverse they are\n"
        "(Unrolled GANs, section 3.4 and Table 3).",
        epilog="""presets:
  paper  50,000 generator updates, batch 128, five seeds: meant for a GPU
  cpu    a quarter of the widths, 5,000 updates, batch 32, four K, three seeds, G ahead of D (1e-3 against 4e-4)
  cpu-paper-rates
         the same with the paper's rates (1e-4 and 2e-4)
  smoke  6 updates: whether it runs; its numbers mean nothing

examples:
  python examples/cifar10.py --data data
  python examples/cifar10.py --preset paper --device cuda --bfloat16 --resume""",
    )
    arguments.add_image_options(what, "CIFAR-10")
    what.add_argument(
        "--bfloat16", action="store_true", default=None, help="both nets under autocast; prints the effect on time"
    )
    args = arguments.parse(parser, "cifar10", argv)
    changes = {name: getattr(args, name) for name in ("backward", "one_batch", "bfloat16")}
    configs = PRESETS[args.preset].configs(args, **changes)
    runs = {run_path(args.out, config): config for config in configs}
    done = updates_done(parser, args, runs)
    cache, judge, accuracy = prepare(OBJECTS, parser, args, PRESETS[args.preset].base.classifier_updates)
    if not args.report:
        print_effect(configs[-1], args.data, args.device)
    job = partial(run, data=args.data, cache=cache)
    if not args.report and not train_missing(args, runs, done, job, plain_cost=8):
        return 1
    finished = {path: config for path, config in runs.items() if done[path] == config.updates}
    if not invert_missing(args, finished):
        return 1
    write_results(args, runs, time.monotonic() - began, judge, accuracy)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
