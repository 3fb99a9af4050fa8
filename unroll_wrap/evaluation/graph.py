"""Walk the graph of a loss to leaves that the unroll did not make, and to nodes without a second derivative."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import Node

from ..call.batch import Arguments
from ..call.names import Names
from ..call.runs import user_of
from ..operators.repairs import FRAGILE, is_custom, is_fragile

# The type of the nodes that stand for leaves has no public name.
_LEAF = type(torch.zeros(1, requires_grad=True).view(1).grad_fn.next_functions[0][0])  # type: ignore[union-attr]

# The code of the wrapper that the decorator puts around every function that it marks.
_MARKED = once_differentiable(lambda ctx: None).__code__


def now() -> int:
    """Return a mark: every node that this thread makes later has a sequence number at least as high."""
    with torch.enable_grad():
        return torch.zeros((), requires_grad=True).view(()).grad_fn._sequence_nr()  # type: ignore[union-attr]


class Reach(NamedTuple):
    """The leaves and special nodes that the graph of a loss reaches."""

    leaves: list[Tensor]  # The leaves reached without passing a node made before the mark, except those left out.
    behind: list[Tensor]  # The leaves reached through a node made before the mark, except those left out.
    captured: bool  # Whether a graph made before the mark leads to a tensor of the user's.
    once: list[str]  # The names of functions marked ``once_differentiable``.
    fragile: list[Node]  # The nodes that have to be repaired before the graph is differentiated twice.
    # All nodes except those of leaves, each as its sequence number, the node and its ``next_functions``.
    nodes: list[tuple[int, Node, Any]]
    ends: list[Any]  # The nodes of all leaves, including those left out.


def reach(root: Any, own: set[int], since: int) -> Reach:
    """Walk a graph from the node ``root`` to its leaves, without those with ids in ``own``; ``since`` is the mark."""
    leaves: dict[int, Tensor] = {}
    behind: dict[int, Tensor] = {}
    once: list[str] = []
    fragile: list[Node] = []
    kinds: dict[tuple[type, bool], bool] = {}
    ends: dict[Any, None] = {}
    nodes: list[tuple[int, Node, Any]] = []
    seen: set[Node | None] = {None}
    stack: list[tuple[Any, bool]] = [(root, False)]
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
        # Every thread numbers its own nodes: those that a penalty's backward pass makes in a GPU's thread look early,
        # but lead to the loss's own leaves.
        number, following = node._sequence_nr(), node.next_functions
        nodes.append((number, node, following))
        early = number < since
        if (kind, early) not in kinds:
            kinds[kind, early] = not early and is_custom(node)
            if kinds[kind, early] and _is_marked(node):
                once.append(node.name())
        if kinds[kind, early] or (kind.__name__ in FRAGILE and is_fragile(node)):
            fragile.append(node)
        stack += [(next_node, early) for next_node, _ in following]
    # A leaf that is reached both ways is one with respect to which a penalty differentiates, so it is not captured.
    captured = any(isinstance(t, nn.Parameter) or i not in leaves for i, t in behind.items())
    return Reach(list(leaves.values()), list(behind.values()), captured, once, fragile, nodes, list(ends))


def is_cut_off(tensor: Tensor, outputs: Iterable[Tensor], arguments: Arguments) -> bool:
    """Return whether outputs depend on a tensor through the graph of one of the user's tensors in the batch alone."""
    if (tensor.grad_fn or id(tensor)) in _graph_of(outputs):
        return False
    users = list(map(user_of, arguments.originals))
    user = next((user for user, (t, *_) in zip(users, arguments.given, strict=True) if t is tensor), None)
    others = [t for t in users if t is not user]
    asked = tensor if user is None else user
    return (asked.grad_fn or id(asked)) in _graph_of(others)


def _graph_of(tensors: Iterable[Tensor]) -> set[Any]:
    """Return the nodes of the graphs of tensors, and the ids of their leaves."""
    found: set[Any] = set()
    for t in tensors:
        walked = reach(t.grad_fn, set(), 0) if t.grad_fn is not None else None
        found |= {id(t)} if walked is None else {*(node for _, node, _ in walked.nodes), *map(id, walked.leaves)}
    return found


def check_not_made(batch: Iterable[Tensor], params: Iterable[Tensor], names: Names) -> None:
    """Raise ValueError if the graph of a tensor of the batch ends at some of the parameters, and nowhere else."""
    own = set(map(id, params))
    if not any(leaves and leaves <= own for leaves in _leaves_of(t.grad_fn for t in batch)):
        return
    is_fake = "If it is fake, the generator was passed in the place of D. Else " if names.optional else ""
    raise ValueError(
        f"A tensor of the batch has a graph that leads to {names.short}'s parameters alone, as {names.short}(x) "
        f"computed before has. {is_fake}{names.short} would get gradients, and the tensor is of {names.short} before "
        "its steps: compute it in the losses, or detach it."
    )


def leads_to(tensors: Iterable[Tensor], params: Iterable[Tensor]) -> bool:
    """Return whether the graph of any of the tensors ends at one of the parameters."""
    own = set(map(id, params))
    return any(leaves & own for leaves in _leaves_of(t.grad_fn for t in tensors))


def _leaves_of(nodes: Iterable[Any]) -> Iterator[set[int]]:
    """Yield the ids of the leaves that each node leads to, for nodes other than None."""
    yield from ({id(leaf) for leaf in reach(n, set(), 0).leaves} for n in nodes if n is not None)


def captures(loss: Tensor, since: int, own: set[int]) -> bool:
    """Return whether ``loss`` reaches a graph made before the mark that ends at leaves with ids in ``own`` alone."""
    early = [n for node in edge(loss, since) for n, _ in node.next_functions if _is_early(n, since)]
    return any(leaves and leaves <= own for leaves in _leaves_of(early))


def _is_early(node: Any, since: int) -> bool:
    return node is not None and type(node) is not _LEAF and node._sequence_nr() < since


def edge(loss: Tensor, since: int) -> list[Node]:
    """Return the nodes of ``loss``'s own graph that lead directly to a node made before the mark."""
    found: list[Node] = []
    seen: set[Node | None] = {None}
    stack: list[Any] = [loss.grad_fn]
    while stack:
        node = stack.pop()
        if node in seen or type(node) is _LEAF or node._sequence_nr() < since:
            continue
        seen.add(node)
        following = [next_node for next_node, _ in node.next_functions if next_node is not None]
        if any(_is_early(n, since) for n in following):
            found.append(node)
        stack += following
    return found


def _is_marked(node: Node) -> bool:
    """Return whether a function is marked ``once_differentiable``; torch's own error does not reach autograd.grad."""
    backward = getattr(node._forward_cls, "backward", None)  # type: ignore[attr-defined]
    return getattr(backward, "__code__", None) is _MARKED
