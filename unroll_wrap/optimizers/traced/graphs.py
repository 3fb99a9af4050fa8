"""Turn a recorded graph into a function that autograd can differentiate."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from ..rule import sqrt


def compiled(graph: fx.GraphModule) -> Callable[..., Any]:
    """Return the function of a graph, without torch's own way, which keeps every source until the process ends."""
    code = graph.graph.python_code("self")
    scope = dict(code.globals)
    exec(compile(code.src, "<a recorded step>", "exec"), scope)
    return partial(scope["forward"], graph)


def differentiable(graph: fx.GraphModule) -> fx.GraphModule:
    """Remove the nodes that cut autograd from a graph, and replace those whose derivative is wrong or missing."""
    aten, profiled = torch.ops.aten, []
    for node in graph.graph.nodes:
        if node.target in (aten.detach.default, aten.alias.default):
            node.replace_all_uses_with(node.args[0])
        elif getattr(node.target, "namespace", "") == "profiler":
            profiled.append(node)
        elif node.target == aten.view.dtype:
            raise RuntimeError("it goes by the bits of numbers, with view(dtype), where no derivative passes.")
        elif node.target == aten.as_strided_scatter.default:
            node.target = _strided_scatter
        elif node.target == aten.copy.default:
            node.target = _copy
        elif node.target == aten.aminmax.default:
            node.target = _aminmax
        elif node.target == aten.sqrt.default or (node.target == aten.pow.Tensor_Scalar and node.args[1] == 0.5):
            node.target, node.args = sqrt, node.args[:1]
    for node in reversed(profiled):
        graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    return graph


def _strided_scatter(to: Tensor, source: Tensor, *place: Any) -> Tensor:
    """Scatter with the right gradient: torch's own passes that of overwritten entries on to ``to``."""
    out = to.clone()
    out.as_strided(*place).copy_(source)
    return out


def _copy(to: Tensor, source: Tensor) -> Tensor:
    return source.to(to).expand_as(to)


def _aminmax(tensor: Tensor, *, dim: int | None = None, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Return the same by two operators: in torch 2.6, the one for both has no derivative."""
    dims = () if dim is None else dim
    return tensor.amin(dims, keepdim), tensor.amax(dims, keepdim)
