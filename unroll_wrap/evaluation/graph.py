"""What a loss's graph ends at, besides the leaves that the unroll made itself, and what in it has one derivative."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction, once_differentiable
from torch.autograd.graph import Node

from ..operators import FRAGILE, is_fragile

# The type of the nodes that stand for leaves has no public name.
_LEAF = type(torch.zeros(1, requires_grad=True).view(1).grad_fn.next_functions[0][0])  # type: ignore[union-attr]

# What the decorator makes of every function that it marks.
_MARKED = once_differentiable(lambda ctx: None).__code__


def now() -> int:
    """A mark: every node that this thread makes later has a number at least as high."""
    with torch.enable_grad():
        return torch.zeros((), requires_grad=True).view(()).grad_fn._sequence_nr()  # type: ignore[union-attr]


class Reach(NamedTuple):
    """Where the graph of a loss leads.

    Attributes:
        leaves: its leaves, but for those left out and those behind a graph made before the mark.
        behind: those behind such a graph.
        captured: whether such a graph leads to anything of the user's.
        once: names of the functions in it that are marked ``once_differentiable``.
        fragile: the nodes in it that have to be repaired before it is differentiated twice.
        nodes: all of it but for its leaves, each with its number and where it leads.
        ends: the nodes of all its leaves, of those left out too.
    """

    leaves: list[Tensor]
    behind: list[Tensor]
    captured: bool
    once: list[str]
    fragile: list[Node]
    nodes: list[tuple[int, Node, Any]]
    ends: list[Any]


def reach(loss: Tensor, own: set[int], since: int) -> Reach:
    """Walk the graph of ``loss`` back to its ends.

    Args:
        loss: a tensor with a graph.
        own: identities of leaves to leave out.
        since: a mark from ``now``.
    """
    leaves: dict[int, Tensor] = {}
    behind: dict[int, Tensor] = {}
    once: list[str] = []
    fragile: list[Node] = []
    kinds: set[tuple[type, bool]] = set()
    ends: dict[Any, None] = {}
    nodes: list[tuple[int, Node, Any]] = []
    seen: set[Node | None] = {None}
    stack: list[tuple[Any, bool]] = [(loss.grad_fn, False)]
    while stack:
        node, early = stack.pop()
        kind = type(node)
        if kind is _LEAF:
            ends[node] = None
            if id(node.variable) not in own:
                (behind if early else leaves)[id(node.variable)] = node.variable
            continue
        if node in seen:
            continue
        seen.add(node)
        # Each thread counts for itself: what a penalty's backward pass makes in that of a GPU looks early, but ends at
        # leaves of the loss's own.
        number, following = node._sequence_nr(), node.next_functions
        nodes.append((number, node, following))
        early = number < since
        if (kind, early) not in kinds:
            kinds.add((kind, early))
            if not early and issubclass(kind, BackwardCFunction) and _is_marked(node):
                once.append(node.name())
        if kind.__name__ in FRAGILE and is_fragile(node):
            fragile.append(node)
        stack += [(next_node, early) for next_node, _ in following]
    # What a penalty differentiates by is a leaf that is reached both ways.
    captured = any(isinstance(t, nn.Parameter) or i not in leaves for i, t in behind.items())
    return Reach(list(leaves.values()), list(behind.values()), captured, once, fragile, nodes, list(ends))


def edge(loss: Tensor, since: int) -> list[Node]:
    """The nodes of ``loss``'s own graph next to one that was made before the mark."""
    found: list[Node] = []
    seen: set[Node | None] = {None}
    stack: list[Any] = [loss.grad_fn]
    while stack:
        node = stack.pop()
        if node in seen or type(node) is _LEAF or node._sequence_nr() < since:
            continue
        seen.add(node)
        following = [next_node for next_node, _ in node.next_functions if next_node is not None]
        if any(type(n) is not _LEAF and n._sequence_nr() < since for n in following):
            found.append(node)
        stack += following
    return found


def _is_marked(node: Node) -> bool:
    """Torch means to raise where such a function is differentiated again, but autograd.grad never gets to see that."""
    backward = getattr(node._forward_cls, "backward", None)  # type: ignore[attr-defined]
    return getattr(backward, "__code__", None) is _MARKED
