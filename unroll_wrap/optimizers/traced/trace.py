"""A recorded step, and the states of an optimizer before and after it."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from ...live.snapshot import Snapshot
from .step_inputs import Seen


class State(NamedTuple):
    """The state of an optimizer."""

    seen: Seen  # The tensors and the key that were found in it.
    snapshot: Snapshot | None  # Restores everything else; None stands for the live state.


class Trace(NamedTuple):
    """A step as a function."""

    # Maps parameters, gradients and holes to the parameters and holes after the step, followed by the tensors whose
    # truth values decided the step.
    function: Callable[..., Sequence[Tensor]]
    decisions: list[bool]  # The truth values of these tensors when the step was recorded.
    after: State  # The state after the step.

    def run(self, inputs: Sequence[Tensor]) -> tuple[list[Tensor], list[bool]]:
        """Return the parameters and holes after the step, and the decisions of the step for these inputs."""
        outputs = list(self.function(*inputs))
        n = len(outputs) - len(self.decisions)
        return outputs[:n], [bool(t) for t in outputs[n:]]


class Depends(Exception):
    """Raised when numbers that a step keeps as tensors depend on gradients, so that they are no constants."""

    def __init__(self, paths: list[str]) -> None:
        super().__init__(f"{paths} depend on gradients")
        self.paths = paths
