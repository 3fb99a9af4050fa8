"""The formulas of matrix products, elementwise operators, means, sums and changes of shape."""

# ruff: noqa: D102, the docstrings of the base class hold for every formula.

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .formulas import Add, Formula, One, Tensors, Wanted, shape_of, times

_aten = torch.ops.aten


class Product(Formula):
    """y = A B, or y = b + A B, where the row b is added to every row of the product."""

    def __init__(self, row: bool) -> None:
        self._row = row
        self.fits = _whole_row if row else None

    def saved(self, node: Any, following: Any) -> Any:  # noqa: ARG002
        return node._saved_mat1 if self._row else node._saved_self, node._saved_mat2, node

    def back(self, saved: Any, bar: Tensor, wanted: Wanted) -> Tensors:
        (a, b, _), (*row, of_a, of_b) = saved, wanted
        rows = [bar.sum(0) if r else None for r in row]
        # B is the transpose of a layer's weight, so this gradient lies in memory in the weight's own order.
        return *rows, bar.mm(b.t()) if of_a else None, bar.t().mm(a).t() if of_b else None

    def forth(self, saved: Any, us: Tensors) -> Tensor | None:
        (a, b, node), (*row, u_a, u_b) = saved, us
        found = row[0] if row else None
        for one, other in ((a, u_b), (u_a, b)):
            if one is not None and other is not None:
                found = one.mm(other) if found is None else torch.addmm(found, one, other)
        return found if found is None or found.dim() == 2 else found.expand(shape_of(node))

    def bend(self, saved: Any, lam: Tensor | None, bar: Tensor, us: Tensors, kept: Any, wanted: Wanted) -> Tensors:  # noqa: ARG002
        (a, b, _), (*_, u_a, u_b), (*row, of_a, of_b) = saved, us, wanted
        rows = [lam.sum(0) if r and lam is not None else None for r in row]
        to_a = _products(((lam, b), (bar, u_b)), lambda bar, b: (bar, b.t())) if of_a else None
        to_b = _products(((lam, a), (bar, u_a)), lambda bar, a: (bar.t(), a)) if of_b else None
        return *rows, to_a, None if to_b is None else to_b.t()


def _products(pairs: Sequence[tuple[Tensor | None, Tensor | None]], factors: Callable[..., Any]) -> Tensor | None:
    """Return the sum of the matrix products of those pairs that have no None."""
    total = None
    for one, other in pairs:
        if one is not None and other is not None:
            left, right = factors(one, other)
            total = left.mm(right) if total is None else torch.addmm(total, left, right)
    return total


def _whole_row(node: Any, following: Any) -> bool:
    row = following[0][0]
    plain = node._saved_alpha == 1 and node._saved_beta == 1
    return plain and (row is None or tuple(shape_of(row)) == tuple(shape_of(node)[1:]))


_constants: dict[Any, Tensor] = {}
# The size of a batch is part of the value, so batches of many sizes would add constants without end.
_MOST = 64


def one_like(t: Tensor) -> Tensor:
    """Return the number 1 as a tensor without dimensions, which is made once for each dtype and device."""
    return _constant(1.0, t)


def _constant(value: float, t: Tensor) -> Tensor:
    key = value, t.dtype, t.device
    if key not in _constants:
        if len(_constants) >= _MOST:
            _constants.clear()
        _constants[key] = torch.full((), value, dtype=t.dtype, device=t.device)
    return _constants[key]


def _share(t: Tensor, given: torch.Size) -> Tensor:
    """Return the gradient of a mean; if ``t`` is the shared constant 1, 1 / n is a shared constant too."""
    n = given.numel()
    return (_constant(1 / n, t) if n and t is one_like(t) else t / n).expand(given)


def _nothing(*_: Any) -> tuple[Any, ...]:
    return ()


def _given(_: Any, following: Any) -> tuple[Any, ...]:
    return (shape_of(following[0][0]),)


def _both(node: Any, following: Any) -> tuple[Any, ...]:
    return shape_of(following[0][0]), shape_of(node)


def _other(node: Any, _: Any) -> tuple[Any, ...]:
    return (node._saved_other,)


def _by_constant(node: Any, following: Any) -> bool:
    """Return whether the second operand is a constant, and the result has the shape of the first."""
    return following[1][0] is None and shape_of(following[0][0]) == shape_of(node)


def _logits(node: Any, _: Any) -> tuple[Any, ...]:
    x = node._saved_self
    return x, node._saved_target, x.numel() if node._saved_reduction == 1 else 1


def _plain_logits(node: Any, following: Any) -> bool:
    weighted = node._saved_weight is not None or node._saved_pos_weight is not None
    return not weighted and node._saved_reduction != 0 and following[1][0] is None


def _softplus_second(product: Tensor, x: Tensor, beta: Any, threshold: Any) -> Tensor:
    # The slope is exactly 1 above the threshold.
    slope = _aten.softplus_backward.default(one_like(x).expand_as(x), x, beta, threshold)
    return times(_sigmoid_backward(product, slope), beta)


_sigmoid_backward = _aten.sigmoid_backward.default
_tanh_backward = _aten.tanh_backward.default
_leaky_backward = _aten.leaky_relu_backward.default
_threshold_backward = _aten.threshold_backward.default
_RESHAPE = One(_both, lambda t, given, _: t.reshape(given), lambda t, _, out: t.reshape(out))

# The keys are the names of autograd's nodes.
FORMULAS: dict[str, Formula] = {
    "NegBackward0": One(_nothing, torch.neg),
    "CloneBackward0": One(_nothing, lambda t: t),
    "TBackward0": One(_nothing, torch.t),
    **dict.fromkeys(("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0"), _RESHAPE),
    "MeanBackward0": One(_given, _share, lambda t, _: t.mean()),
    "SumBackward0": One(_given, lambda t, given: t.expand(given), lambda t, _: t.sum()),
    "AddBackward0": Add(1),
    "SubBackward0": Add(-1),
    "RsubBackward1": One(_nothing, torch.neg, fits=lambda node, _: node._saved_alpha == 1),
    "MulBackward0": One(_other, torch.mul, fits=_by_constant),
    "DivBackward0": One(_other, torch.div, fits=_by_constant),
    "ReluBackward0": One(lambda node, _: (node._saved_result, 0), _threshold_backward),
    "LeakyReluBackward0": One(lambda node, _: (node._saved_self, node._saved_negative_slope, False), _leaky_backward),
    "LeakyReluBackward1": One(lambda node, _: (node._saved_result, node._saved_negative_slope, True), _leaky_backward),
    "SigmoidBackward0": One(
        lambda node, _: (node._saved_result,),
        _sigmoid_backward,
        second=lambda product, y: _sigmoid_backward(product, y) * (1 - 2 * y),
    ),
    "TanhBackward0": One(
        lambda node, _: (node._saved_result,),
        _tanh_backward,
        second=lambda product, y: _tanh_backward(product, y) * (-2 * y),
    ),
    "SoftplusBackward0": One(
        lambda node, _: (node._saved_self, node._saved_beta, node._saved_threshold),
        _aten.softplus_backward.default,
        second=_softplus_second,
    ),
    "PowBackward0": One(
        lambda node, _: (node._saved_self,),
        lambda t, x: t * (2 * x),
        second=lambda product, _: 2 * product,
        fits=lambda node, _: node._saved_exponent == 2,
    ),
    "BinaryCrossEntropyWithLogitsBackward0": One(
        _logits,
        lambda t, x, target, n: (x.sigmoid() - target) * t / n,
        lambda t, x, target, n: ((x.sigmoid() - target) * t / n).sum(),
        lambda product, x, _, n: _sigmoid_backward(product, x.sigmoid()) / n,
        _plain_logits,
    ),
    "AddmmBackward0": Product(row=True),
    "MmBackward0": Product(row=False),
}
