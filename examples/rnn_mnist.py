"""A recurrent generator: section 3.2, Appendix C and Figure 3 of Metz et al., Unrolled GANs (ICLR 2017).

    G: z → relu(W z) = h_0 = c_0 of an LSTM → 28 columns,      D: three convolutions → 1 logit

An LSTM draws MNIST column by column against a convolutional discriminator, two players without symmetry. Trained as
usual the generator collapses and moves from one blot to the next; unrolled (K = 20 in the paper) it covers the digits.
One command trains every K with every seed. The figure is in the manner of Figure 3. Beside it stand measures of
collapse over training: the classes of which a classifier, trained here, finds at least 1 % of the samples, the
entropy of the class it predicts (log 10 = 2.303 at most), the classes and the share of samples of which it is sure
(over 0.9), and the mean l2 distance of two samples: one shape, drawn with some tremble, may be read as several classes.
So that the classifier is not sure of noise, it is trained with noise, blots and torn digits as an eleventh class.

How Appendix C was read: the noise goes through its layer into both parts of the LSTM's state, and nothing else goes
into the LSTM. "Xavier" is the uniform form of Glorot and Bengio, in both networks. "After each layer" is after each
convolution, before its leaky ReLU. The generator's loss, printed as log D(G(z)), is read as the non-saturating
-log D(G(z)); --objective minimax takes Eq. 4's f. 150,000 steps of one network each are 75,000 generator updates.

Where it is silent: convolutions are 3 × 3 as in Appendix D; beta2 is 0.999; the batch is 128, DCGAN's; D moves first,
every update of either player draws a new minibatch, which the K unrolled steps share; D normalises real and fake
samples in one batch (in two with --apart, which hides their mean and their scale from its first layer).
"""

import argparse
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from common import arguments, distributed
from common.arguments import BACKWARDS, OBJECTIVES
from common.classifier import DIGITS, classifier, classify, noise_and_blots, prepare
from common.data import to_pixels
from common.experiment import Preset, records, train_missing, updates_done
from common.fidelity import pair_distances
from common.metrics import entropy
from common.mnist import load_digits, sample_digits
from common.nets import ColumnGenerator, conv_discriminator, xavier
from common.report import draw_figures, markdown_table, over_seeds, summarise, write_report
from common.training import Minibatch, Players, Training, in_one_batch, train_on_images, with_adam
from unroll_wrap import UnrolledGeneratorLoss

MEASURES = {"classes": 1, "sure_classes": 1, "entropy": 2, "sure": 2, "distance": 1}  # with the digits to print
PAIRS = 10_000  # of samples, for their distance


@dataclass(frozen=True)
class Config:
    """One run. The defaults are Appendix C."""

    unroll: int = 20
    seed: int = 0
    updates: int = 75_000  # of the generator
    # nets
    noise: int = 256
    units: int = 256
    d_channels: tuple[int, ...] = (16, 32, 32)
    # training
    objective: str = "non_saturating"
    one_batch: bool = True  # D normalises real and fake samples together
    backward: str = "store"
    batch: int = 128
    g_lr: float = 1e-4
    d_lr: float = 1e-4
    betas: tuple[float, float] = (0.5, 0.999)
    # what is looked at
    samples: int = 2560
    evaluate_every: int = 2500
    columns: int = 6  # moments of training in the figure
    classifier_updates: int = 2500


SMOKE = Config(updates=10, batch=36, samples=256, evaluate_every=5, columns=3, classifier_updates=10)
PRESETS = {
    "paper": Preset(Config(), (0, 20), (0, 1, 2)),
    # G ahead of D, with a quarter of the unrolled steps, half of the batch and a 15th of the length.
    "cpu": Preset(Config(updates=5000, batch=64, g_lr=1e-3, d_lr=2e-4, evaluate_every=100), (0, 5), (0, 1, 2)),
    # The paper's rates at the same scale: D wins within some hundred updates.
    "cpu-paper-rates": Preset(Config(updates=5000, batch=64, evaluate_every=100), (0, 5), (0, 1, 2)),
    "smoke": Preset(SMOKE, (0, 1), (0,)),
}


def build(config: Config, device: torch.device) -> Players:
    """The two networks of Appendix C, each with its Adam."""
    G = ColumnGenerator(config.noise, config.units, 28)
    D = conv_discriminator(28, (1, *config.d_channels))
    xavier(G)
    xavier(D)
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
    draw = partial(sample_digits, config.batch, digits)
    for point, samples in train_on_images(config, players, train, draw, path, save_every=save_every, report=report):
        point.update(measure(judge, samples))


def measure(judge: nn.Module, batches: Iterable[Tensor]) -> dict[str, float]:
    """Classes with at least 1 % of the samples, entropy of the class in nats, share of sure samples, mean distance."""
    batches = list(batches)
    read = [classify(judge, images) for images in batches]
    classes = torch.cat([classes for classes, _ in read])
    sure = torch.cat([probability > 0.9 for _, probability in read])
    enough = 0.01 * len(classes)
    return {
        "classes": int((classes.bincount(minlength=10) >= enough).sum()),
        "sure_classes": int((classes[sure].bincount(minlength=10) >= enough).sum()),
        "entropy": round(entropy(classes, 10), 4),
        "sure": round(float(sure.double().mean()), 4),
        "distance": round(float(pair_distances(torch.cat(batches), PAIRS).mean()), 4),
    }


def run_path(out: Path, config: Config) -> Path:
    """The checkpoint of a run; its history and its events have the same name."""
    return out / "runs" / f"k{config.unroll}-seed{config.seed}.pt"


def write_results(
    args: argparse.Namespace, runs: Mapping[Path, Config], seconds: float, judge: nn.Module, accuracy: float
) -> None:
    """Table, summary and figures of the runs that have a checkpoint."""
    found = list(records(runs))
    test = to_pixels(load_digits(args.data, train=False).images.to(args.device)).unsqueeze(1)
    torch.manual_seed(0)
    data, noise = measure(judge, [test]), measure(judge, [noise_and_blots(len(test), args.device)])

    rows = summarise(found, ("unroll", "seed"), MEASURES)
    header = ["K", "when", "seeds", *(name.replace("_", " ") for name in MEASURES)]
    groups = over_seeds(runs.values(), rows, ("unroll",), MEASURES)
    cells = [[*group, *values] for group, values in groups.items()]
    for name, of_name in (("data", data), ("noise", noise)):
        cells.append([name, "", "", *(f"{of_name[measure]:.{digits}f}" for measure, digits in MEASURES.items())])
    table = markdown_table(header, cells)
    measured = {"classifier_test_accuracy": round(accuracy, 4), "data": data, "noise": noise}
    write_report(args, runs, found, table, rows, seconds, **measured)

    panels = [
        ("sure_classes", "classes of 10 with sure samples"),
        ("entropy", "entropy of the class"),
        ("distance", "distance of two samples"),
    ]
    draw_figures(args.out, found, panels, data, side=5)


def main(argv: Sequence[str] | None = None) -> int:
    """Trains what is missing of the grid and writes the results."""
    began = time.monotonic()
    parser, what = arguments.experiment_parser(
        "rnn_mnist",
        PRESETS,
        "cpu",
        description="Train GANs with a recurrent generator on MNIST, plain (K = 0) and unrolled (K > 0), and\n"
        "compare how they collapse (Unrolled GANs, section 3.2 and Figure 3).",
        epilog="""presets:
  paper  75,000 generator updates, batch 128, K = 20: meant for a GPU
  cpu    5,000 updates, batch 64, K = 0 and 5, three seeds, G ahead of D (1e-3 against 2e-4): 90 minutes of a core
  cpu-paper-rates
         the same with the paper's rates (1e-4 for both)
  smoke  10 updates: whether it runs; its numbers mean nothing

examples:
  python examples/rnn_mnist.py --data data
  python examples/rnn_mnist.py --preset paper --device cuda --resume""",
    )
    arguments.add_image_options(what, "MNIST")
    args = arguments.parse(parser, "rnn_mnist", argv)
    configs = PRESETS[args.preset].configs(args, backward=args.backward, one_batch=args.one_batch)
    runs = {run_path(args.out, config): config for config in configs}
    done = updates_done(parser, args, runs)
    cache, judge, accuracy = prepare(DIGITS, parser, args, PRESETS[args.preset].base.classifier_updates)
    job = partial(run, data=args.data, cache=cache)
    if not args.report and not train_missing(args, runs, done, job, plain_cost=8):
        return 1
    write_results(args, runs, time.monotonic() - began, judge, accuracy)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
