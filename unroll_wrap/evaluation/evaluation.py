"""The record of one run of a loss."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ..call.batch import Arguments


class Evaluation(NamedTuple):
    """The value of a loss with its graph, and the leaves of that graph."""

    name: str  # The name of the loss in messages.
    loss: Tensor  # The value, a tensor with one element and with its graph.
    params: list[Tensor]  # The leaves that D holds as its parameters.
    arguments: Arguments  # The arguments of the loss, with leaves in place of the user's tensors.
    hooks: list[Any]  # The handles of the hooks that the loss has registered on its graph.
    # What follows is found by a walk over the graph, and has these defaults without one.
    # All other leaves that the loss reaches, such as those of a generator or a head that it calls.
    outside: Sequence[Tensor] = ()
    captured: bool = False  # Whether the loss reaches a graph made before the call, as a closure over ``fake`` does.
    # The names of functions that cannot be differentiated twice, which autograd itself does not report.
    once: Sequence[str] = ()
    fragile: Sequence[Any] = ()  # The nodes that have to be repaired before the graph is differentiated twice.
    # Whether the captured graph leads to D as it was before the call, as ``D(real)`` in a closure does.
    stale: bool = False
    alone: bool = False  # Whether a graph is captured that leads to parameters that move and to nothing else.
    behind: Sequence[Tensor] = ()  # All other leaves that the loss reaches, if the captured graph is stale.
    # The nodes of the graph except the leaves', and those of the leaves; None if something needs autograd.
    nodes: tuple[list[Any], list[Any]] | None = None

    @property
    def users(self) -> list[Tensor]:
        """The user's tensors for which the leaves ``outer`` stand, in the same order."""
        return [*self.arguments.originals, *self.outside]

    @property
    def outer(self) -> list[Tensor]:
        """The leaves that stand for tensors of the user's outside D."""
        return [*self.arguments.leaves, *self.outside]
