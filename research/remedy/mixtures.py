"""The ring and the square of Gaussians, in the nets of Appendix A."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

import mixture_of_gaussians as ring
from common.data import ring_centers, sample_mixture, square_centers
from common.metrics import modes_covered, share_within
from common.nets import mlp
from common.training import evaluation_noise
from remedy.task import Measure, Minibatch, Task

CENTERS = {"ring": ring_centers, "square": square_centers}
# What the runs have of it. The other fields are the ring's own experiment's, and play no part here.
SHARED = "noise std batch d_scale g_hidden d_hidden activation gain g_lr betas updates".split()
SHARED += "seconds samples evaluate_every looks".split()


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
    looks: int = 20  # evaluations over these seconds
    samples: int = 2_000


SMOKE = Config(updates=3, seconds=0.0, samples=100, batch=8, g_hidden=(8,), d_hidden=(8,), evaluate_every=1)


class Mixture(Task):
    """One of `CENTERS`."""

    measures = (Measure("modes", "modes"), Measure("within_3_std", "good samples", scale=100, sign=" %"))
    one_batch = False  # there is no BatchNorm
    r1_weight = 1.0
    gp_weight = 0.1  # that of the authors' toy script

    def __init__(self, name: str, config: Config, rates: tuple[float, ...]) -> None:
        self.name, self.config, self.rates = name, config, rates
        self.centers: Tensor = CENTERS[name]()
        self.modes = len(self.centers)
        self.noise = evaluation_noise(config.samples, config.noise, torch.device("cpu"))

    def generator(self) -> nn.Module:
        return mlp((self.config.noise, *self.config.g_hidden, 2), gain=self.config.gain)

    def discriminator(self, together: int = 1) -> nn.Sequential:
        return mlp((2 * together, *self.config.d_hidden, 1), gain=self.config.gain)

    def start(self, layer: nn.Linear) -> None:
        nn.init.orthogonal_(layer.weight, self.config.gain)
        nn.init.zeros_(layer.bias)

    def minibatches(self, seed: int) -> Iterator[tuple[Minibatch, Minibatch]]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            real = sample_mixture(self.config.batch, self.centers, self.config.std, generator)
            both = Minibatch(real, torch.randn(self.config.batch, self.config.noise, generator=generator))
            yield both, both

    def measure(self, G: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            samples = G(self.noise)
        return {
            "modes": modes_covered(samples, self.centers, self.config.std),
            "within_3_std": round(share_within(samples, self.centers, self.config.std), 4),
        }

    def score(self, point: Mapping[str, float]) -> float:
        return point["modes"] / self.modes + point["within_3_std"]

    def shared(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self.config).items() if name in SHARED}
