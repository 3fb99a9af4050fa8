"""Trace functions of plain tensors, with the derivatives that they take, and compile the graphs into kernels."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from ...torch_private import compile_ahead


def compile_graph(graph: GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]]:
    """Compile a graph for tensors like ``inputs``."""
    with torch.no_grad():
        compiled: Any = compile_ahead(graph, inputs)
    # Compiled code needs the strides that it was compiled for, and a cotangent may have others.
    strides = [t.stride() for t in inputs]
    return lambda *tensors: compiled(*map(_with_strides, tensors, strides))


def _with_strides(tensor: Tensor, stride: tuple[int, ...]) -> Tensor:
    if tensor.stride() == stride:
        return tensor
    return torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def trace(function: Callable[..., list[Tensor]], *inputs: Any) -> GraphModule:
    """Return the graph of a function; raise ValueError if it depends on more than its arguments."""
    with torch.enable_grad():
        traced = make_fx(function, decomposition_table=_DECOMPOSITIONS)(*inputs)
    for node in traced.graph.nodes:
        if node.op == "get_attr" and not all("lift_fresh" in str(user.target) for user in node.users):
            raise ValueError("it captures a tensor. Pass every tensor that it uses as an argument")
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise ValueError(f"it draws random numbers, in {node.target}")
    return traced


def _mm(a: Tensor, b: Tensor) -> Tensor:
    """Multiply matrices with a dimension of at most 4 entry by entry: the compiler fuses this, but never mm or bmm."""
    rows, inner, columns = *a.shape[-2:], b.shape[-1]
    if inner <= 4:
        terms = [a[..., i : i + 1] * b[..., i : i + 1, :] for i in range(inner)]
        return sum(terms[1:], terms[0])
    if columns <= 4:
        return torch.stack([(a * b[..., None, :, j]).sum(-1) for j in range(columns)], -1)
    if rows <= 4:
        return torch.stack([(a[..., i, :, None] * b).sum(-2) for i in range(rows)], -2)
    return NotImplemented


def _addmm(bias: Tensor, a: Tensor, b: Tensor, beta: float = 1, alpha: float = 1) -> Tensor:
    product = _mm(a, b)
    # With beta = 0 torch never reads the bias, which may hold anything.
    return product if product is NotImplemented else alpha * product + (beta * bias if beta else 0)


_aten = torch.ops.aten
_DECOMPOSITIONS = {
    _aten.mm.default: _mm,
    _aten.bmm.default: _mm,
    _aten.addmm.default: _addmm,
    _aten.baddbmm.default: _addmm,
}
