"""The operations that average over processes, for a call of one process alone."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..optimizers.block import Block

Grads = list[Tensor | None]


class OneProcess:
    """A call that averages with no other process: each rank looks ahead on its own."""

    def __enter__(self) -> "OneProcess":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Do nothing: no other process waits."""

    def agree(self, steps: int, owned: Sequence[Tensor], batch: Any, facts: Callable[[], dict[str, Any]]) -> None:
        """Raise unless all processes are about to make the same call."""

    def expect(self, averages: int) -> None:
        """Set how many averages this call performs."""

    def gradients(self, grads: Grads, batch: Any) -> Grads | None:
        """Return the averaged gradients, without graph; None if there is nothing to average."""

    def cotangent(self, blocks: list[Block]) -> list[Block]:
        """Return the cotangents, with that of θ averaged over the processes."""
        return blocks
