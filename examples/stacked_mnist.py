"""A thousand modes: section 3.3.1, Appendix E and Table 1 of Metz et al., Unrolled GANs (ICLR 2017).

    modes = #{m : p_m > 0},      KL(model ‖ data) = Σ_m p_m log(1000 · p_m)

over the 1,000 combinations m of three MNIST digits, one in each colour of an image. p_m is the share of 25,600
samples whose colours a classifier, trained here, reads as the digits m. One command trains every K with every seed.

How Appendix E was read: its table calls the generator's layers convolutions and the discriminator's transposed ones;
their strides only fit the other way round. Appendix D's sentence on all convolutions (3 × 3, BatchNorm, leaky ReLU of
0.3) and its rates (G 1e-4, D 2e-4) are taken for E, and beta1 = 0.5 from A and C. Its generator loss, printed as
log D(G(z)), is read as the non-saturating -log D(G(z)); --objective minimax takes Eq. 4's f. "4 * 4 * 64" and three
strides of 2 end at 32 × 32, so the digits are padded by 2 black pixels.

Where it is silent: the output is tanh and carries no BatchNorm, as in DCGAN; weights start as torch's layers do; beta2
is 0.999; D moves first, every update of either player draws a new minibatch, which the K unrolled steps share; the
batch is 128, DCGAN's, and the length Appendix D's 100,000 steps of one network each, which are 50,000 generator
updates. D normalises real and fake samples in one batch: in two (--apart) its first layer does not see that a
background is grey, and in a sketch K = 0 and K = 5 stayed at one or two modes for thousands of updates.

Mode counts swing during training, and they flatter: blots are read as digits too. So the table has, besides the last
evaluation, the mean over the last third of training; the share of samples of whose three digits the classifier is sure
(more than 0.9 each); and the modes that have at least one such sample. So that the classifier is not sure of noise, it
is trained with noise, blots and torn digits as an eleventh class; the table's last row says what it makes of noise.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from common import arguments, distributed
from common.arguments import BACKWARDS, OBJECTIVES
from common.classifier import DIGITS, classifier, classify, noise_and_blots, prepare
from common.experiment import Preset, records, train_missing, updates_done
from common.metrics import kl_from_uniform
from common.mnist import crop_to_28, load_digits, pad_to_32, sample_stacked
from common.nets import conv_discriminator, conv_generator
from common.report import draw_figures, markdown_table, over_seeds, summarise, write_report
from common.training import Minibatch, Players, Training, in_one_batch, train_on_images, with_adam
from unroll_wrap import UnrolledGeneratorLoss

MEASURES = {"modes": 0, "sure_modes": 0, "kl": 2, "sure": 2}  # with the digits to print
SIZES = {"1/4": 0.25, "1/2": 0.5}

# Table 1: modes and KL of the paper by X and K, means and standard errors.
TABLE_1 = {
    (0.25, 0): ("30.6 ± 20.7", "5.99 ± 0.42"),
    (0.25, 1): ("65.4 ± 34.8", "5.91 ± 0.14"),
    (0.25, 5): ("236.4 ± 63.3", "4.67 ± 0.43"),
    (0.25, 10): ("327.2 ± 74.7", "4.66 ± 0.46"),
    (0.5, 0): ("628.0 ± 140.9", "2.58 ± 0.75"),
    (0.5, 1): ("523.6 ± 55.8", "2.44 ± 0.26"),
    (0.5, 5): ("732.0 ± 45.0", "1.66 ± 0.09"),
    (0.5, 10): ("817.4 ± 37.9", "1.43 ± 0.12"),
}


@dataclass(frozen=True)
class Config:
    """One run. The defaults are Appendix E at X = 1/4."""

    unroll: int = 10
    seed: int = 0
    updates: int = 50_000  # of the generator
    # nets
    size: float = 0.25  # X, of D against G
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
    samples: int = 25_600
    evaluate_every: int = 2500
    columns: int = 6  # moments of training in the figure
    classifier_updates: int = 2500


SMOKE = Config(updates=20, batch=36, samples=512, evaluate_every=10, columns=3, classifier_updates=10)
CPU = Config(updates=8000, size=0.5, batch=32, evaluate_every=800)
PRESETS = {
    "paper": Preset(Config(), (0, 1, 5, 10), (0, 1, 2, 3, 4)),
    # G ahead of D, with a quarter of the batch and a sixth of the length. An evaluation takes as long as 200 plain
    # updates, so there are few.
    "cpu": Preset(replace(CPU, g_lr=1e-3, d_lr=4e-4), (0, 1, 5, 10), (0, 1, 2)),
    "cpu-paper-rates": Preset(CPU, (0, 1, 5, 10), (0, 1, 2)),
    "smoke": Preset(SMOKE, (0, 1), (0,)),
}


def generator(config: Config) -> nn.Sequential:
    """Z → 4·4·64 → 32 → 16 → 8 → 3."""
    return conv_generator(config.noise, (64, 32, 16, 8, 3))


def discriminator(config: Config, colors: int = 3) -> nn.Sequential:
    """3 → 8X → 16X → 32X → 1 logit."""
    return conv_discriminator(32, (colors, *(round(config.size * channels) for channels in (8, 16, 32))))


def build(config: Config, device: torch.device) -> Players:
    """Both networks, each with its Adam."""
    G, D = generator(config), discriminator(config)
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
    cache: Path,
) -> None:
    """One run from its checkpoint, or from nothing, to its end."""
    report((0, "loading"))
    torch.manual_seed(config.seed)
    players = build(config, device)
    digits = load_digits(data, train=True).images.to(device)
    judge, _ = classifier(DIGITS, cache, data, device, updates=config.classifier_updates)
    draw = partial(sample_stacked, config.batch, digits)
    for point, samples in train_on_images(config, players, train, draw, path, save_every=save_every, report=report):
        point.update(measure(judge, samples))


def measure(judge: nn.Module, batches: Iterable[Tensor]) -> dict[str, float]:
    """Modes with a sample and with a sure one, KL(model ‖ data) in nats, and the share of sure samples."""
    read = [classify(judge, crop_to_28(images).flatten(0, 1).unsqueeze(1)) for images in batches]
    digits = torch.cat([classes for classes, _ in read]).view(-1, 3)
    sure = torch.cat([probability > 0.9 for _, probability in read]).view(-1, 3).all(dim=1)
    combinations = (digits * digits.new_tensor([100, 10, 1])).sum(dim=1)
    return {
        "modes": len(combinations.unique()),
        "sure_modes": len(combinations[sure].unique()),
        "kl": round(kl_from_uniform(combinations, 1000), 4),
        "sure": round(float(sure.double().mean()), 4),
    }


def run_path(out: Path, config: Config) -> Path:
    """The checkpoint of a run; its history and its events have the same name."""
    return out / "runs" / f"x{config.size}-k{config.unroll}-seed{config.seed}.pt"


def write_results(
    args: argparse.Namespace, runs: Mapping[Path, Config], seconds: float, judge: nn.Module, accuracy: float
) -> None:
    """Table, summary and figures of the runs that have a checkpoint."""
    found = list(records(runs))
    base = found[0][0]
    torch.manual_seed(0)
    test = load_digits(args.data, train=False).images
    data = measure(judge, (sample_stacked(512, test).to(args.device) for _ in range(base.samples // 512)))
    grey = (noise_and_blots(3 * 512, args.device).view(-1, 3, 28, 28) for _ in range(base.samples // 512))
    noise = measure(judge, map(pad_to_32, grey))

    rows = summarise(found, ("size", "unroll", "seed"), MEASURES)
    header = ["X", "K", "when", "seeds", "modes", "sure modes", "KL", "sure", "paper: modes", "paper: KL"]
    groups = over_seeds(runs.values(), rows, ("size", "unroll"), MEASURES)
    cells = []
    for (size, unroll, when), values in groups.items():
        of_paper = TABLE_1.get((size, unroll), ("", "")) if when == "end" else ("", "")
        cells.append([f"1/{1 / size:.0f}", unroll, when, *values, *of_paper])
    for name, of_name in (("data", data), ("noise", noise)):
        values = [f"{of_name[measure]:.{digits}f}" for measure, digits in MEASURES.items()]
        cells.append(["", name, "", "", *values, "", ""])
    table = markdown_table(header, cells)
    measured = {"classifier_test_accuracy": round(accuracy, 4), "data": data, "noise": noise}
    write_report(args, runs, found, table, rows, seconds, **measured)

    panels = [("modes", "modes of 1,000"), ("sure_modes", "modes with a sure sample")]
    panels += [("kl", "KL(model ‖ data)"), ("sure", "share of sure samples")]
    for size in dict.fromkeys(config.size for config, _ in found):
        of_size = [(config, progress) for config, progress in found if config.size == size]
        draw_figures(args.out, of_size, panels, data, side=5, suffix=f"-x{size}")


def main(argv: Sequence[str] | None = None) -> int:
    """Trains what is missing of the grid and writes the results."""
    began = time.monotonic()
    parser, what = arguments.experiment_parser(
        "stacked_mnist",
        PRESETS,
        "cpu",
        description="Train GANs on a thousand combinations of three digits, plain (K = 0) and unrolled\n"
        "(K > 0), and count the modes that they cover (Unrolled GANs, section 3.3.1 and Table 1).",
        epilog="""presets:
  paper  50,000 generator updates, batch 128, five seeds: meant for a GPU; give --size 1/4 1/2
  cpu    8,000 updates, batch 32, X = 1/2, three seeds, G ahead of D (1e-3 against 4e-4): 2.5 hours of one core
  cpu-paper-rates
         the same with the paper's rates (1e-4 and 2e-4)
  smoke  20 updates: whether it runs; its numbers mean nothing

examples:
  python examples/stacked_mnist.py --data data
  python examples/stacked_mnist.py --preset paper --size 1/4 1/2 --device cuda --resume""",
    )
    arguments.add_image_options(what, "MNIST")
    what.add_argument("--size", nargs="+", choices=SIZES, help="X, the size of D against G (default: the preset's)")
    args = arguments.parse(parser, "stacked_mnist", argv)
    runs = {
        run_path(args.out, config): config
        for size in dict.fromkeys(map(SIZES.get, args.size or [""]))
        for config in PRESETS[args.preset].configs(args, size=size, backward=args.backward, one_batch=args.one_batch)
    }
    done = updates_done(parser, args, runs)
    cache, judge, accuracy = prepare(DIGITS, parser, args, PRESETS[args.preset].base.classifier_updates)
    job = partial(run, data=args.data, cache=cache)
    if not args.report and not train_missing(args, runs, done, job, plain_cost=8):
        return 1
    write_results(args, runs, time.monotonic() - began, judge, accuracy)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
