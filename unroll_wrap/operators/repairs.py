"""Repair the nodes of a loss's graph whose gradient has a wrong derivative in torch, or NaN, or none.

A hook on the node returns the same gradient up to rounding, with a graph that can be differentiated. It does not matter
how the operator was called or under which transform it ran, because its node is the same in every case.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.utils.checkpoint import CheckpointError

from . import subgradients
from .normalization import Cotangents, by_channel, normalization
from .subgradients import Repair, always, signed

_OWN = __name__.partition(".")[0] + "."


def repair(nodes: Sequence[Any]) -> list[Any]:
    """Hook these nodes, and return the handles, which have to be removed after one backward pass."""
    handles = [node.register_hook(_hook_on(node)) for node in nodes]
    for handle in handles:
        # The user's own hooks on the node run after this one.
        handle.hooks_dict_ref().move_to_end(handle.id, last=False)
    return handles


def is_fragile(node: Any) -> bool:
    """Return whether the node has to be repaired before its gradient is differentiated."""
    needed, _ = _REPAIRS.get(type(node).__name__, (None, None))
    return needed is not None and needed(node)


def is_custom(node: Any) -> bool:
    """Return whether the node belongs to a ``torch.autograd.Function`` of the user's."""
    return issubclass(type(node), BackwardCFunction) and not node._forward_cls.__module__.startswith(_OWN)


def _hook_on(node: Any) -> Callable[[Cotangents, Cotangents], Any]:
    if is_custom(node):
        return partial(_check_graph, node)
    return partial(_replaced, _REPAIRS[type(node).__name__][1], node)


def _check_graph(node: Any, found: Cotangents, of: Cotangents) -> None:
    """Raise if a cotangent has a graph and the gradient, which is linear in it, has lost that graph."""
    given = [g for g in found if g is not None]
    if any(bar is not None and bar.requires_grad for bar in of) and not any(g.requires_grad for g in given):
        if any(g.any() for g in given):
            raise RuntimeError(
                f"{node._forward_cls.__name__}, a torch.autograd.Function, computes its gradient without a graph, "
                "under no_grad() or in numpy say, and autograd would take the second derivative to be 0. Compute it by "
                "differentiable operations, pass backward=FiniteDifference(), or stop_gradient=True for the first term "
                "alone."
            )


def _replaced(right: Repair, node: Any, found: Cotangents, of: Cotangents) -> Any:
    if all(bar is None for bar in of):
        return None
    try:
        given = [*right(node, of), *[None] * len(found)]
    except CheckpointError as error:
        # A checkpoint gives out each tensor once, and torch's own node has taken it. Its gradient is right except at 0.
        if type(node).__name__ in subgradients.REPAIRS:
            return None
        raise RuntimeError(
            f"torch's second derivative of {node.name()} is wrong, and within torch.utils.checkpoint it cannot be made "
            "good. Leave that operator out of what is checkpointed."
        ) from error
    return tuple(
        old if old is None or new is None else new.to(old.dtype) for old, new in zip(found, given, strict=False)
    )


def _layer_norm(node: Any, of: Cotangents) -> Cotangents:
    to_y, x, weight, r, *of = _upcast(
        node._saved_grad_out, node._saved_input, node._saved_weight, node._saved_rstd, *of
    )
    dims = list(range(-len(node._saved_normalized_shape), 0))
    of_y, of_x, of_weight = normalization(to_y, x, weight, r, dims, of)
    return of_y, of_x, None, None, of_weight


def _batch_norm(node: Any, of: Cotangents) -> Cotangents:
    r = node._saved_save_invstd
    to_y, x, weight, r, *of = _upcast(node._saved_grad_out, node._saved_input, node._saved_weight, r, *of)
    return by_channel(to_y, x, weight, r, of)


def _vendors_batch_norm(node: Any, of: Cotangents) -> Cotangents:
    """Repair the nodes of cuDNN and MIOpen, which have their arguments in another order."""
    r = node._saved_save_var
    to_y, x, weight, r, *of = _upcast(node._saved_grad_output, node._saved_input, node._saved_weight, r, *of)
    of_y, of_x, of_weight = by_channel(to_y, x, weight, r, of)
    return of_x, of_y, of_weight


def _upcast(*tensors: Tensor | None) -> list[Any]:
    """Return tensors in at least 32 bits, as kernels compute; statistics of a float16 input may be float32 already."""
    return [None if t is None else t.float() if t.itemsize == 2 else t for t in tensors]


def _weight_norm(node: Any, of: Cotangents) -> Cotangents:
    """W = g v / n with n = ‖v‖:  v̄ = g / n (W̄ - v Σ W̄ v / n²),  ḡ = Σ W̄ v / n. Torch holds n constant."""
    leaves: list[Any] = [getattr(source, "variable", None) for source, _ in node.next_functions]
    v, g = leaves if None not in leaves else (node._saved_v, node._saved_g)
    bar = of[0]
    assert bar is not None
    n = torch.norm_except_dim(v, 2, signed(node._saved_dim))
    along = (bar * v).sum_to_size(g.shape) / n
    return g / n * (bar - v * (along / n)), along


def _by_statistics(node: Any) -> bool:
    # In evaluation mode the statistics are constants, and torch's own derivative is right.
    return node._saved_train


_REPAIRS: dict[str, tuple[Callable[[Any], bool], Repair]] = {
    "NativeLayerNormBackwardBackward0": (always, _layer_norm),
    "NativeBatchNormBackwardBackward0": (_by_statistics, _batch_norm),
    "CudnnBatchNormBackwardBackward0": (always, _vendors_batch_norm),
    "MiopenBatchNormBackwardBackward0": (always, _vendors_batch_norm),
    "WeightNormInterfaceBackward0": (always, _weight_norm),
    **subgradients.REPAIRS,
}
FRAGILE = frozenset(_REPAIRS)
