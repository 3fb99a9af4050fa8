"""Repair norms, distances and deviations, which at 0 have the gradient 0 in torch, but NaN as their second derivative.

A value of 0 comes from two equal samples, a critic without slope, or a feature that is constant over the batch. At 0,
real steps use the subgradient 0, and the repair takes its derivative to be 0 too.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# Maps a node and the cotangents of its outputs to the cotangents of its inputs.
Repair = Callable[[Any, Sequence[Tensor | None]], Sequence[Tensor | None]]


def signed(dim: int) -> int:
    """Return a dimension as it was given: nodes store negative ones as unsigned integers."""
    return dim - 2**64 if dim >= 2**63 else dim


def _ratio(over: Tensor, under: Tensor) -> Tensor:
    """Return the quotient, which is 0 with all its derivatives where ``under`` is 0."""
    zero = under == 0
    return torch.where(zero, 0, over / torch.where(zero, 1, under))


def _slope(x: Tensor, n: Tensor, p: float) -> Tensor:
    """Return the gradient of n = (Σ |x|ᵖ)^(1/p)."""
    if p == 2:
        return _ratio(x, n)
    zero = x == 0
    powers = torch.where(zero, 0, x * torch.where(zero, 1, x.abs()).pow(p - 2))
    return _ratio(powers, n.pow(p - 1))


def _dims(node: Any) -> list[int]:
    """Return the dimensions that the node has reduced."""
    total = node._saved_self.dim()
    return sorted(signed(d) % total for d in node._saved_dim or range(total))


def _wide(node: Any, reduced: Tensor) -> Tensor:
    """Return a reduced tensor in a shape that broadcasts to that of the node's input."""
    if getattr(node, "_saved_dim", None) and not node._saved_keepdim:
        for d in _dims(node):
            reduced = reduced.unsqueeze(d)
    return reduced


def _norm(node: Any, of: Sequence[Any]) -> list[Tensor]:
    return [_wide(node, of[0]) * _slope(node._saved_self, _wide(node, node._saved_result), _order(node))]


def _distance(node: Any, of: Sequence[Any]) -> list[Tensor]:
    one, other = node._saved_self, node._saved_other
    found = of[0] * _slope(one - other, node._saved_result, node._saved_p)
    return [found.sum_to_size(one.shape), -found.sum_to_size(other.shape)]


def _distances(node: Any, of: Sequence[Any]) -> list[Tensor]:
    """Return the gradient of the distances of all pairs, for which torch has no second derivative at all."""
    one, other = node._saved_x1, node._saved_x2
    found = _ratio(of[0], node._saved_result).unsqueeze(-1) * (one.unsqueeze(-2) - other.unsqueeze(-3))
    return [found.sum(-2).sum_to_size(one.shape), -found.sum(-3).sum_to_size(other.shape)]


def _distances_by_products(node: Any, of: Sequence[Any]) -> list[Tensor]:
    one, other, ratio = node._saved_x1, node._saved_x2, _ratio(of[0], node._saved_result)
    back = ratio.mT
    return [one * ratio.sum(-1, keepdim=True) - ratio @ other, other * back.sum(-1, keepdim=True) - back @ one]


def _deviation(node: Any, of: Any, n: Tensor) -> Tensor:
    x, dims, correction = node._saved_self, _dims(node), node._saved_correction
    free = math.prod(x.shape[d] for d in dims) - (1 if correction is None else correction)
    return _ratio(_wide(node, of), _wide(node, n)) * (x - x.mean(dims, keepdim=True)) / free


def _std(node: Any, of: Sequence[Any]) -> list[Tensor]:
    return [_deviation(node, of[0], node._saved_result)]


def _std_and_mean(node: Any, of: Sequence[Any]) -> list[Tensor]:
    x, (of_std, of_mean) = node._saved_self, of
    found = torch.zeros_like(x) if of_std is None else _deviation(node, of_std, node._saved_result0)
    return [found if of_mean is None else found + _wide(node, of_mean) / math.prod(x.shape[d] for d in _dims(node))]


def _power(node: Any, of: Sequence[Any]) -> list[Tensor]:
    x, p = node._saved_self, node._saved_exponent
    zero = x == 0
    return [of[0] * p * torch.where(zero, 0, torch.where(zero, 1, x).pow(p - 1))]


def _order(node: Any) -> float:
    found = node._saved_ord if hasattr(node, "_saved_ord") else node._saved_p
    return 2.0 if found is None else found


def _bends(node: Any) -> bool:
    # The sum and the maximum of absolute values are piecewise linear.
    return _order(node) not in (0, 1, math.inf, -math.inf)


def always(_: Any) -> bool:
    """Return True: a node of this kind always needs the repair."""
    return True


# For the name of each node: a test whether the node needs the repair, and the repair.
REPAIRS: dict[str, tuple[Callable[[Any], bool], Repair]] = {
    "LinalgVectorNormBackward0": (_bends, _norm),
    **dict.fromkeys((f"NormBackward{i}" for i in range(4)), (_bends, _norm)),
    "DistBackward0": (_bends, _distance),
    "CdistBackward0": (lambda node: node._saved_p == 2, _distances),
    "EuclideanDistBackward0": (always, _distances_by_products),
    "StdBackward0": (always, _std),
    "StdMeanBackward0": (always, _std_and_mean),
    "PowBackward0": (lambda node: 1 < node._saved_exponent < 2, _power),
}
