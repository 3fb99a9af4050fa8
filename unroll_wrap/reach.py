"""What a loss's graph ends at, besides the leaves that the unroll made itself."""

import torch
from torch import Tensor
from torch.autograd.graph import Node

# The type of the nodes that stand for leaves has no public name.
_LEAF = type(torch.zeros(1, requires_grad=True).view(1).grad_fn.next_functions[0][0])  # type: ignore[union-attr]


def now() -> int:
    """A mark: every node that this thread makes later has a number at least as high."""
    with torch.enable_grad():
        return torch.zeros((), requires_grad=True).view(()).grad_fn._sequence_nr()  # type: ignore[union-attr]


def reach(loss: Tensor, own: set[int], since: int) -> tuple[list[Tensor], bool]:
    """Walk the graph of ``loss`` back to its ends.

    Args:
        loss: a tensor with a graph.
        own: identities of leaves to leave out.
        since: a mark from ``now``.

    Returns:
        The other leaves, and whether the graph leads into one made before the mark. Its nodes have no tensor that
        could be differentiated with respect to, so the leaves are then left out.
    """
    leaves: list[Tensor] = []
    seen: set[Node] = set()
    stack: list[Node | None] = [loss.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if type(node) is _LEAF:
            if id(node.variable) not in own:  # type: ignore[attr-defined]
                leaves.append(node.variable)  # type: ignore[attr-defined]
        elif node._sequence_nr() < since:  # type: ignore[attr-defined]
            return [], True
        else:
            stack.extend(next_node for next_node, _ in node.next_functions)
    return leaves, False
