"""What a setting is tried on: nets, data and measures, and how long a run is."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn


class Minibatch(NamedTuple):
    """Data, and the noise of as many fakes."""

    real: Tensor
    z: Tensor


class Measure(NamedTuple):
    """What the table has of an evaluation."""

    name: str
    title: str
    scale: float = 1.0
    digits: int = 1
    sign: str = ""


class Task(ABC):
    """One game for every setting. Networks are drawn from torch's global generator, minibatches are not."""

    name: str
    modes: int
    rates: tuple[float, ...]  # of D: one for all, or those to choose from
    measures: tuple[Measure, ...]
    # D normalises real and fake samples together, so that both pass it as one batch.
    one_batch: bool
    r1_weight: float
    gp_weight: float
    # `batch`, `noise`, `g_lr`, `betas`, and the length: `updates`, `seconds`, `evaluate_every` and `looks`
    config: Any

    def load(self) -> None:
        """Data and what else a run needs, where there is any; `DataError` says what is missing."""
        return

    @abstractmethod
    def generator(self) -> nn.Module:
        """From noise to samples."""

    @abstractmethod
    def discriminator(self, together: int = 1) -> nn.Sequential:
        """From samples, or so many `together`, to a logit; the last layer is linear."""

    @abstractmethod
    def start(self, layer: nn.Linear) -> None:
        """Draws the weights of a layer as those of D are drawn."""

    @abstractmethod
    def minibatches(self, seed: int) -> Iterator[tuple[Minibatch, Minibatch]]:
        """For the update of D, and for that of G."""

    @abstractmethod
    def measure(self, G: nn.Module) -> dict[str, float]:
        """`modes`, of all there are, and what else is measured."""

    @abstractmethod
    def score(self, point: Mapping[str, float]) -> float:
        """What D's rate is chosen by: the higher, the better."""

    @abstractmethod
    def shared(self) -> dict[str, Any]:
        """What all runs have in common, in plain values."""
