"""A recorded step, and the states of an optimizer before and after it."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from ...live.snapshot import Snapshot
from .step_inputs import Seen


class State(NamedTuple):
    """The state of an optimizer: what was seen of it, and a snapshot to restore; None stands for the live state."""

    seen: Seen
    snapshot: Snapshot | None


class Trace(NamedTuple):
    """A step as a function.

    Attributes:
        function: parameters, gradients, holes → parameters and holes after the step, then the tensors it decided by.
        decisions: the decisions of the step when it was recorded.
        after: the state after the step.
    """

    function: Callable[..., Sequence[Tensor]]
    decisions: list[bool]
    after: State

    def run(self, inputs: Sequence[Tensor]) -> tuple[list[Tensor], list[bool]]:
        """Return what the step has moved, and how it decides with these inputs."""
        outputs = list(self.function(*inputs))
        n = len(outputs) - len(self.decisions)
        return outputs[:n], [bool(t) for t in outputs[n:]]


class Depends(Exception):
    """Raised when numbers that a step keeps as tensors depend on gradients, so that they are no constants."""

    def __init__(self, paths: list[str]) -> None:
        super().__init__(f"{paths} depend on gradients")
        self.paths = paths
