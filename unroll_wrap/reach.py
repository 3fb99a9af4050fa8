"""What a loss's graph ends at, besides the leaves that the unroll made itself, and what in it has one derivative."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction, once_differentiable
from torch.autograd.graph import Node

# The type of the nodes that stand for leaves has no public name.
_LEAF = type(torch.zeros(1, requires_grad=True).view(1).grad_fn.next_functions[0][0])  # type: ignore[union-attr]

# The third derivative of the first is wrong, silently; of the others there is none.
_TWICE = {
    "NativeLayerNormBackwardBackward0",
    "NativeBatchNormBackwardBackward0",
    "CudnnBatchNormBackwardBackward0",
    "MiopenBatchNormBackwardBackward0",
}
# What the decorator makes of every function that it marks.
_MARKED = once_differentiable(lambda ctx: None).__code__


def now() -> int:
    """A mark: every node that this thread makes later has a number at least as high."""
    with torch.enable_grad():
        return torch.zeros((), requires_grad=True).view(()).grad_fn._sequence_nr()  # type: ignore[union-attr]


class Reach(NamedTuple):
    """Where the graph of a loss leads.

    Attributes:
        leaves: its leaves, but for those left out.
        captured: whether it leads into a graph made before the mark. That graph's nodes have no tensor that could be
            differentiated with respect to, so there are then no leaves.
        once: names of the functions in it that are marked ``once_differentiable``.
        twice: whether it was differentiated, by a penalty, through an operator with two right derivatives.
    """

    leaves: list[Tensor]
    captured: bool
    once: list[str]
    twice: bool


def reach(loss: Tensor, own: set[int], since: int) -> Reach:
    """Walk the graph of ``loss`` back to its ends.

    Args:
        loss: a tensor with a graph.
        own: identities of leaves to leave out.
        since: a mark from ``now``.
    """
    leaves: list[Tensor] = []
    once: list[str] = []
    captured = False
    kinds: set[type] = set()
    seen: set[Node | None] = {None}
    stack: list[Node | None] = [loss.grad_fn]
    while stack:
        node: Any = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        kind = type(node)
        if kind is _LEAF:
            if id(node.variable) not in own:
                leaves.append(node.variable)
        elif node._sequence_nr() < since:
            captured = True
        else:
            if kind not in kinds:
                kinds.add(kind)
                if issubclass(kind, BackwardCFunction) and _is_marked(node):
                    once.append(node.name())
            stack += [next_node for next_node, _ in node.next_functions]
    twice = any(kind.__name__ in _TWICE for kind in kinds)
    return Reach([] if captured else leaves, captured, once, twice)


def _is_marked(node: Node) -> bool:
    """Torch means to raise where such a function is differentiated again, but autograd.grad never gets to see that."""
    backward = getattr(node._forward_cls, "backward", None)  # type: ignore[attr-defined]
    return getattr(backward, "__code__", None) is _MARKED
