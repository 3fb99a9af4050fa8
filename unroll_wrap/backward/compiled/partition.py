"""Split the graph of a step and its pullback into two: the step, which keeps some results, and the pullback."""

from collections.abc import Sequence

import torch
from functorch.compile import config, min_cut_rematerialization_partition  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor
from torch.func import functionalize
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

_aten = torch.ops.aten
# What the compiler calls as it is, and does not fuse with its surroundings.
_HEAVY = {
    op.default
    for op in (_aten.convolution, _aten.convolution_backward, _aten.mm, _aten.bmm, _aten.addmm, _aten.baddbmm)
}


def partition(
    joint: GraphModule, primals: Sequence[Tensor], tangents: Sequence[Tensor], results: int
) -> tuple[GraphModule, GraphModule]:
    """Return the graph of the first ``results`` and what it keeps for the others, and the graph of the others.

    ``joint`` is a function of ``primals`` and ``tangents``. The first graph takes the primals and returns the kept
    tensors last; the second takes these and the tangents.

    Where everything is fused, to compute the step again costs less than writing and reading its intermediate results,
    so only the primals are kept. With convolutions and matrix products, which would run again, torch's minimal cut
    decides.
    """
    # The cut takes what autograd has written in place for a part of the pullback, and the step has its own gradients.
    functional = functionalize(lambda primals, tangents: joint(primals, tangents), remove="mutations")
    graph = make_fx(functional)(primals, tangents)
    graph.graph.eliminate_dead_code()
    FakeTensorProp(graph).propagate(*primals, *tangents)
    fused = not any(node.target in _HEAVY for node in graph.graph.nodes)
    with config.patch(activation_memory_budget=0.0 if fused else 1.0):
        return min_cut_rematerialization_partition(graph, [*primals, *tangents], num_fwd_outputs=results)
