"""Pull cotangents of the gradients of ``d_loss`` back through its graph, by autograd."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..evaluation.evaluate import Evaluation
from ..evaluation.gradients import differentiate
from ..evaluation.precision import length
from .one_process import Grads
from .step import Point


def pull(
    unroll: Any, evaluation: Evaluation, start: Point, grads: Grads, bars: Sequence[Tensor | None], first: bool
) -> Grads:
    """Return (∂g/∂θ)ᵀḡ for every parameter, and add (∂g/∂x)ᵀḡ for the user's tensors to the sensitivity.

    Args:
        unroll: the unroll, for its evaluator and its sensitivity.
        evaluation: the run of the loss whose gradients are g.
        start: the point at which it ran.
        grads: g, with its graph.
        bars: ḡ.
        first: whether the part of the parameters is not needed, which then is empty.
    """
    pairs = [
        (g, bar) for g, bar in zip(grads, bars, strict=True) if g is not None and bar is not None and g.requires_grad
    ]
    # A checkpoint that recomputes a part of D's forward pass must find this step's tensors in D.
    unroll.evaluate.put(evaluation.params, start.buffers, start.contents)
    params = [] if first else unroll.evaluate.swap.handles(evaluation.params)
    inner = [p for p in params if p.requires_grad]
    found = differentiate(
        evaluation.name,
        [g for g, _ in pairs],
        [*inner, *evaluation.outer],
        [bar for _, bar in pairs],
        factor=unroll.evaluate.autocast.second,
        retain_graph=evaluation.captured or bool(evaluation.outside),
    )
    if first and unroll.fresh:
        rest = length(g for _, g in unroll.sensitivity.pairs())
        unroll.outsized = length(found[len(inner) :]) / rest if rest else 0.0
    reached = unroll.sensitivity.add(evaluation.users, found[len(inner) :])
    unroll.sensitivity.second_term |= reached or evaluation.captured
    if evaluation.captured and pairs:
        where = pairs[0][0].device
        surrogate = torch.stack([(g * bar).sum().to(where) for g, bar in pairs]).sum()
        unroll.sensitivity.through(surrogate, evaluation)
        unroll.sensitivity.edge += unroll.evaluate.edge(evaluation)
    of_params = iter(found)
    return [next(of_params) if p.requires_grad else None for p in params]
