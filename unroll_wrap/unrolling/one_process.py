"""Averaging over processes, where there is one process."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..optimizers.block import Block

Grads = list[Tensor | None]


class OneProcess:
    """Nobody to average with: each rank looks ahead on its own."""

    def __enter__(self) -> "OneProcess":
        """Nothing to begin."""
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Nobody to tell."""

    def agree(self, steps: int, owned: Sequence[Tensor], batch: Any, facts: Callable[[], dict[str, Any]]) -> None:
        """Make sure that all are about to do the same."""

    def expect(self, averages: int) -> None:
        """So many are to come."""

    def gradients(self, grads: Grads, batch: Any) -> Grads | None:
        """The averages, without graph; None where there is nothing to average."""

    def cotangent(self, blocks: list[Block]) -> list[Block]:
        """Cotangents with that of θ averaged."""
        return blocks
