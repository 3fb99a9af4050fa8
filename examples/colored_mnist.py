"""Coloured digits: section 3.3.2, Appendix F and Table 2 of Metz et al., Unrolled GANs (ICLR 2017).

    JS(p_model, p_data) over the colours of digits, by k-means and Gaussian kernel densities

Each digit has one colour, drawn from a three-dimensional Gaussian. A generator that draws good digits in few colours
has collapsed to a sub-manifold, which the eye does not see. One command trains every K with every seed.

How Appendix F was read: its tables call the generator's layers convolutions and the discriminator's transposed ones;
their strides only fit the other way round. X = 1 is Appendix D's architecture, so its sentence on all convolutions
(3 × 3, BatchNorm, leaky ReLU of 0.3), its rates (G 1e-4, D 2e-4) and its length (100,000 steps of one network each,
50,000 generator updates) are taken for all X, and beta1 = 0.5 from A and C. The generator's loss, printed as
log D(G(z)), is read as the non-saturating -log D(G(z)); --objective minimax takes Eq. 4's f. The digits are padded to
32 × 32, where four by four pixels and three strides of 2 end, before the noise is added.

Where it is silent: the output is tanh and carries no BatchNorm, as in DCGAN; weights start as torch's layers do; beta2
is 0.999; D moves first, every update of either player draws a new minibatch, which the K unrolled steps share; the
batch is 128, DCGAN's; D normalises real and fake samples in one batch (in two with --apart). The foreground is the
brighter cluster; both densities have the bandwidth of Scott's rule for the data; divergences are in nats. Two sets of
colours of the data itself are not quite 0 apart: the table's last row says how far.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common import arguments, distributed
from common.arguments import BACKWARDS, OBJECTIVES
from common.colors import foreground_colors, js_divergence
from common.data import DataError
from common.experiment import Preset, records, train_missing, updates_done
from common.mnist import load_digits, sample_colored
from common.nets import conv_discriminator, conv_generator
from common.report import draw_figures, markdown_table, over_seeds, summarise, write_report
from common.training import Minibatch, Players, Training, in_one_batch, train_on_images, with_adam
from unroll_wrap import UnrolledGeneratorLoss

MEASURES = {"js": 4, "spread": 3}  # with the digits to print
SIZES = {"1/4": 0.25, "1/2": 0.5, "1": 1.0}

# Table 2: JS divergence of the paper by X and K, means and standard errors.
TABLE_2 = {
    (0.25, 0): "0.073 ± 0.0058",
    (0.25, 1): "0.142 ± 0.028",
    (0.25, 5): "0.049 ± 0.0021",
    (0.25, 10): "0.075 ± 0.012",
    (0.5, 0): "0.095 ± 0.011",
    (0.5, 1): "0.119 ± 0.010",
    (0.5, 5): "0.055 ± 0.0049",
    (0.5, 10): "0.074 ± 0.016",
    (1.0, 0): "0.034 ± 0.0034",
    (1.0, 1): "0.050 ± 0.0026",
    (1.0, 5): "0.027 ± 0.0028",
    (1.0, 10): "0.025 ± 0.00076",
}


@dataclass(frozen=True)
class Config:
    """One run. The defaults are Appendix F at X = 1/4."""

    unroll: int = 10
    seed: int = 0
    updates: int = 50_000  # of the generator
    # nets
    size: float = 0.25  # X, of both
    noise: int = 256
    # training
    objective: str = "non_saturating"
    one_batch: bool = True  # D normalises real and fake samples together
    backward: str = "store"
    batch: int = 128
    g_lr: float = 1e-4
    d_lr: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.999)
    # what is looked at
    samples: int = 5120
    evaluate_every: int = 2500
    columns: int = 6  # moments of training in the figure


SMOKE = Config(updates=10, batch=36, samples=64, evaluate_every=5, columns=3)
CPU = Config(updates=5000, batch=16, samples=2560, evaluate_every=500)
PRESETS = {
    "paper": Preset(Config(), (0, 1, 5, 10), (0, 1, 2, 3, 4)),
    # G ahead of D, with an eighth of the batch, half the samples, a 25th of the length, and X = 1/4 alone.
    "cpu": Preset(replace(CPU, updates=2000, g_lr=1e-3, d_lr=4e-4, evaluate_every=400), (0, 5), (0, 1, 2)),
    "cpu-paper-rates": Preset(CPU, (0, 1, 5, 10), (0, 1, 2)),
    "smoke": Preset(SMOKE, (0, 1), (0,)),
}


def build(config: Config, device: torch.device) -> Players:
    """G: z → 4·4·512X → 256X → 128X → 64X → 3 and D: 3 → 64X → 128X → 256X → 1 logit, each with its Adam."""
    wide, *narrower = (round(config.size * channels) for channels in (512, 256, 128, 64))
    G = conv_generator(config.noise, (wide, *narrower, 3))
    D = conv_discriminator(32, (3, *reversed(narrower)))
    return with_adam(G, D, device, g_lr=config.g_lr, d_lr=config.d_lr, betas=config.betas)


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
) -> None:
    """One run from its checkpoint, or from nothing, to its end."""
    report((0, "loading"))
    torch.manual_seed(config.seed)
    players = build(config, device)
    digits = load_digits(data, train=True).images.to(device)
    real_colors = colors_of_data(config, digits, seed=2017)
    draw = partial(sample_colored, config.batch, digits)
    for point, samples in train_on_images(config, players, train, draw, path, save_every=save_every, report=report):
        point.update(measure(colors_of(samples), real_colors))


def measure(colors: np.ndarray, real_colors: np.ndarray) -> dict[str, float]:
    """JS divergence from the data's colours, and the standard deviation of the colours, a mean over the three."""
    return {
        "js": round(js_divergence(colors, real_colors), 5),
        "spread": round(float(colors.std(axis=0).mean()), 4),
    }


def colors_of(batches: Iterable[Tensor]) -> np.ndarray:
    """The colour of every digit."""
    return np.concatenate([foreground_colors(images) for images in batches])


def colors_of_data(config: Config, digits: Tensor, seed: int) -> np.ndarray:
    """Colours of as many samples of the data as are drawn from the generator."""
    # Training goes on with its own random numbers.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return colors_of([sample_colored(config.samples, digits)])


def run_path(out: Path, config: Config) -> Path:
    """The checkpoint of a run; its history and its events have the same name."""
    return out / "runs" / f"x{config.size}-k{config.unroll}-seed{config.seed}.pt"


def write_results(args: argparse.Namespace, runs: Mapping[Path, Config], seconds: float) -> None:
    """Table, summary and figures of the runs that have a checkpoint."""
    found = list(records(runs))
    base = found[0][0]
    digits = load_digits(args.data, train=True).images
    data = measure(colors_of_data(base, digits, seed=0), colors_of_data(base, digits, seed=2017))

    rows = summarise(found, ("size", "unroll", "seed"), MEASURES)
    header = ["X", "K", "when", "seeds", "JS", "spread", "paper: JS"]
    names = {size: name for name, size in SIZES.items()}
    cells = [
        [names[size], unroll, when, *values, TABLE_2.get((size, unroll), "") if when == "end" else ""]
        for (size, unroll, when), values in over_seeds(runs.values(), rows, ("size", "unroll"), MEASURES).items()
    ]
    cells.append(["", "data", "", "", f"{data['js']:.4f}", f"{data['spread']:.3f}", ""])
    write_report(args, runs, found, markdown_table(header, cells), rows, seconds, data=data)

    panels = [("js", "JS divergence of colours"), ("spread", "standard deviation of colours")]
    for size in dict.fromkeys(config.size for config, _ in found):
        of_size = [(config, progress) for config, progress in found if config.size == size]
        draw_figures(args.out, of_size, panels, data, side=5, suffix=f"-x{size}")


def main(argv: Sequence[str] | None = None) -> int:
    """Trains what is missing of the grid and writes the results."""
    began = time.monotonic()
    parser, what = arguments.experiment_parser(
        "colored_mnist",
        PRESETS,
        "cpu",
        description="Train GANs on digits of random colours, plain (K = 0) and unrolled (K > 0), and compare\n"
        "the distributions of colours (Unrolled GANs, section 3.3.2 and Table 2).",
        epilog="""presets:
  paper  50,000 generator updates, batch 128, five seeds: meant for a GPU; give --size 1/4 1/2 1
  cpu    2,000 updates, batch 16, K = 0 and 5, three seeds, G ahead of D (1e-3 against 4e-4)
  cpu-paper-rates
         5,000 updates, K = 0, 1, 5 and 10 with the paper's rates (1e-4 and 2e-4)
  smoke  10 updates: whether it runs; its numbers mean nothing

examples:
  python examples/colored_mnist.py --data data
  python examples/colored_mnist.py --preset paper --size 1/4 1/2 1 --device cuda --resume""",
    )
    arguments.add_image_options(what, "MNIST")
    what.add_argument("--size", nargs="+", choices=SIZES, default=["1/4"], help="X, of both nets (default: 1/4)")
    args = arguments.parse(parser, "colored_mnist", argv)
    runs = {
        run_path(args.out, config): config
        for size in dict.fromkeys(args.size)
        for config in PRESETS[args.preset].configs(
            args, size=SIZES[size], backward=args.backward, one_batch=args.one_batch
        )
    }
    done = updates_done(parser, args, runs)
    try:
        load_digits(args.data, train=True)
    except DataError as error:
        parser.error(str(error))
    job = partial(run, data=args.data)
    if not args.report and not train_missing(args, runs, done, job, plain_cost=8):
        return 1
    write_results(args, runs, time.monotonic() - began)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
