"""Carry what losses leave in D beside its parameters, such as statistics, from one step to the next."""

from collections.abc import Iterable

from torch import Tensor

from ..call.runs import Run, mark

# The attribute of what is left of a tensor that a loss has kept in D with its graph, such as features.
_HAD_GRAPH = "_unroll_wrap_had_graph"
_BEFORE = Run()
_BEFORE.closed = True


def without_graph(tensor: Tensor) -> Tensor:
    """Return a tensor as a loss has left it in D, without its graph."""
    plain = tensor.detach()
    if tensor.grad_fn is not None:
        setattr(plain, _HAD_GRAPH, True)
    return plain


def copies(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return clones without the tensors' graphs, and for one that had a graph, a clone that shows if a loss uses it."""
    return [_showing(t) if hasattr(t, _HAD_GRAPH) else t.detach().clone() for t in tensors]


def _showing(tensor: Tensor) -> Tensor:
    leaf = tensor.detach().requires_grad_()
    mark(leaf, _BEFORE)
    return leaf.clone()
