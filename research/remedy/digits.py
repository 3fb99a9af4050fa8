"""A thousand modes: the stacked digits of `examples/stacked_mnist.py`, its nets, losses and measures, at X = 1/4.

As there by default, D normalises real and fake samples in one batch, with every setting, and every update of either
player has a minibatch of its own.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import stacked_mnist
from common.classifier import DIGITS, classifier
from common.mnist import load_digits, sample_stacked
from common.training import evaluation_noise
from remedy.task import Measure, Minibatch, Task

# D's rate is not searched here: every setting is trained with both.
RATES = {"digits": 4e-4, "digits-fast-D": 2e-3}
SHARED = "size noise batch g_lr betas updates seconds samples evaluate_every looks classifier_updates".split()


@dataclass(frozen=True)
class Config(stacked_mnist.Config):
    """The `cpu` preset of the experiment, shortened, at X = 1/4."""

    batch: int = 32
    g_lr: float = 1e-3
    updates: int = 1000
    seconds: float = 50.0
    evaluate_every: int = 1000
    looks: int = 4  # evaluations over these seconds
    samples: int = 6_400


SMOKE = Config(updates=3, seconds=0.0, samples=64, batch=8, evaluate_every=2, classifier_updates=3)


class StackedDigits(Task):
    """One of `RATES`, of a folder with MNIST; the classifier is trained once and kept in a file."""

    modes = 1000
    measures = (Measure("modes", "modes", digits=0), Measure("kl", "KL", digits=2))
    one_batch = True
    # Those of the authors' experiments on images.
    r1_weight = 10.0
    gp_weight = 10.0

    def __init__(self, name: str, config: Config, data: Path, judge: Path) -> None:
        self.name, self.config, self.rates = name, config, (RATES[name],)
        self.data, self.path_of_judge = data, judge
        # G's BatchNorm sees batches of the size that it is trained on.
        self.noise = evaluation_noise(config.samples, config.noise, torch.device("cpu")).split(config.batch)

    def load(self) -> None:
        self.images = load_digits(self.data, train=True).images
        updates = self.config.classifier_updates
        self.judge, _ = classifier(DIGITS, self.path_of_judge, self.data, torch.device("cpu"), updates=updates)

    def generator(self) -> nn.Module:
        return stacked_mnist.generator(self.config)

    def discriminator(self, together: int = 1) -> nn.Sequential:
        return stacked_mnist.discriminator(self.config, colors=3 * together)

    def start(self, layer: nn.Linear) -> None:
        layer.reset_parameters()

    def minibatches(self, seed: int) -> Iterator[tuple[Minibatch, Minibatch]]:
        generator = torch.Generator().manual_seed(seed)

        def draw() -> Minibatch:
            real = sample_stacked(self.config.batch, self.images, generator)
            return Minibatch(real, torch.randn(self.config.batch, self.config.noise, generator=generator))

        while True:
            yield draw(), draw()

    def measure(self, G: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            return stacked_mnist.measure(self.judge, [G(z) for z in self.noise])

    def score(self, point: Mapping[str, float]) -> float:
        return point["modes"] / self.modes

    def shared(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self.config).items() if name in SHARED}
