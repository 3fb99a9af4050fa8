"""First and second derivatives of operators, by the name that autograd gives to the node of each.

``back`` is what autograd computes, J(x)ᵀ ȳ. Its derivative, for cotangents u of what it returns, has two parts:
``forth`` is the one for ȳ, which is J(x) u, and ``bend`` the one for x, to which it adds J(x)ᵀ λ for a cotangent λ of
the operator's own result. Autograd takes two graphs and several times as many calls for the same.
"""

# ruff: noqa: D102, the base class says what each method is.

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Tensors = Sequence[Tensor | None]
Wanted = Sequence[bool]
_aten = torch.ops.aten


class Formula:
    """Of one kind of operators.

    Attributes:
        curved: whether ``back`` depends on the arguments of the operator: then ȳ is kept, and u is asked for.
        fits: whether the formula holds for a node, given where that leads; None if it does for all.
    """

    curved = True
    fits: Callable[[Any, Any], bool] | None = None

    def saved(self, node: Any, following: Any) -> Any:
        """What the node has saved; torch raises here if that has been written to since."""
        raise NotImplementedError

    def back(self, saved: Any, bar: Tensor, wanted: Wanted) -> Tensors:
        """J(x)ᵀ ȳ, for each input."""
        raise NotImplementedError

    def forth(self, saved: Any, us: Tensors) -> Tensor | None:
        """J(x) u, where None is zero."""
        raise NotImplementedError

    def bend(self, saved: Any, lam: Tensor | None, bar: Tensor, us: Tensors, kept: Any, wanted: Wanted) -> Tensors:
        """J(x)ᵀ λ + (∂/∂x) ⟨u, J(x)ᵀ ȳ⟩, for each input; ``kept`` is from ``back``."""
        raise NotImplementedError

    def kept(self, found: Tensors) -> Any:  # noqa: ARG002
        """What of the result of ``back`` is asked for again; all else is given back."""
        return None


class One(Formula):
    """An operator with one differentiable input, the first.

    Args:
        read: what its node has saved.
        back: of ȳ and that.
        forth: of u and that; None if it is the same function, as it is entry by entry.
        second: of u ȳ and that, the derivative of ``back``; None for an operator that is linear piece by piece.
        fits: as of every formula.
    """

    def __init__(
        self,
        read: Callable[[Any, Any], tuple[Any, ...]],
        back: Callable[..., Tensor],
        forth: Callable[..., Tensor] | None = None,
        second: Callable[..., Tensor] | None = None,
        fits: Callable[[Any, Any], bool] | None = None,
    ) -> None:
        self._read, self.fits = read, fits
        self._back, self._forth, self._second = back, forth or back, second
        self.curved = second is not None

    def saved(self, node: Any, following: Any) -> Any:
        return self._read(node, following)

    def back(self, saved: Any, bar: Tensor, wanted: Wanted) -> Tensors:  # noqa: ARG002
        return (self._back(bar, *saved),)

    def forth(self, saved: Any, us: Tensors) -> Tensor | None:
        return None if us[0] is None else self._forth(us[0], *saved)

    def bend(self, saved: Any, lam: Tensor | None, bar: Tensor, us: Tensors, kept: Any, wanted: Wanted) -> Tensors:  # noqa: ARG002
        first = None if lam is None else self._back(lam, *saved)
        if self._second is None or us[0] is None:
            return (first,)
        return (plus(first, self._second(us[0] * bar, *saved)),)


class Add(Formula):
    """The sum a + sign · alpha · b, of two of the same shape or of one and a constant."""

    curved = False

    def __init__(self, sign: int) -> None:
        self._sign = sign

    @staticmethod
    def fits(node: Any, following: Any) -> bool:
        """Nothing is broadcast."""
        out = _shape(node)
        return all(n is None or _shape(n) == out for n, _ in following)

    def saved(self, node: Any, following: Any) -> Any:  # noqa: ARG002
        return self._sign * node._saved_alpha

    def back(self, saved: Any, bar: Tensor, wanted: Wanted) -> Tensors:
        return bar, _times(bar, saved) if len(wanted) > 1 and wanted[1] else None

    def forth(self, saved: Any, us: Tensors) -> Tensor | None:
        one, other = (*us, None)[:2]
        if other is None:
            return one
        return _times(other, saved) if one is None else torch.add(one, other, alpha=saved)

    def bend(self, saved: Any, lam: Tensor | None, bar: Tensor, us: Tensors, kept: Any, wanted: Wanted) -> Tensors:  # noqa: ARG002
        return () if lam is None else self.back(saved, lam, wanted)


class Product(Formula):
    """y = b + A B, with b a row that is added to each of the product's, or without it."""

    def __init__(self, row: bool) -> None:
        self._row = row
        self.fits = _whole_row if row else None

    def saved(self, node: Any, following: Any) -> Any:  # noqa: ARG002
        return node._saved_mat1 if self._row else node._saved_self, node._saved_mat2, node

    def back(self, saved: Any, bar: Tensor, wanted: Wanted) -> Tensors:
        (a, b, _), (*row, of_a, of_b) = saved, wanted
        rows = [bar.sum(0) if r else None for r in row]
        # Transposed, as a layer has its weight: what comes out is then in the weight's own order.
        return *rows, bar.mm(b.t()) if of_a else None, bar.t().mm(a).t() if of_b else None

    def forth(self, saved: Any, us: Tensors) -> Tensor | None:
        (a, b, node), (*row, u_a, u_b) = saved, us
        found = row[0] if row else None
        for one, other in ((a, u_b), (u_a, b)):
            if one is not None and other is not None:
                found = one.mm(other) if found is None else torch.addmm(found, one, other)
        return found if found is None or found.dim() == 2 else found.expand(_shape(node))

    def bend(self, saved: Any, lam: Tensor | None, bar: Tensor, us: Tensors, kept: Any, wanted: Wanted) -> Tensors:  # noqa: ARG002
        (a, b, _), (*_, u_a, u_b), (*row, of_a, of_b) = saved, us, wanted
        rows = [lam.sum(0) if r and lam is not None else None for r in row]
        to_a = _products(((lam, b), (bar, u_b)), lambda bar, b: (bar, b.t())) if of_a else None
        to_b = _products(((lam, a), (bar, u_a)), lambda bar, a: (bar.t(), a)) if of_b else None
        return *rows, to_a, None if to_b is None else to_b.t()


def _products(pairs: Sequence[tuple[Tensor | None, Tensor | None]], factors: Callable[..., Any]) -> Tensor | None:
    """The sum of the products of pairs, none of which has a None."""
    total = None
    for one, other in pairs:
        if one is not None and other is not None:
            left, right = factors(one, other)
            total = left.mm(right) if total is None else torch.addmm(total, left, right)
    return total


def plus(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """The sum, where None is zero."""
    if one is None or other is None:
        return other if one is None else one
    return one + other


def _times(t: Tensor, factor: float) -> Tensor:
    return t if factor == 1 else -t if factor == -1 else t * factor


_constants: dict[Any, Tensor] = {}
# Batches may be of any size.
_MOST = 64


def one_like(t: Tensor) -> Tensor:
    """1 as a tensor without dimensions, made once for each kind and device."""
    return _constant(1.0, t)


def _constant(value: float, t: Tensor) -> Tensor:
    key = value, t.dtype, t.device
    if key not in _constants:
        if len(_constants) >= _MOST:
            _constants.clear()
        _constants[key] = torch.full((), value, dtype=t.dtype, device=t.device)
    return _constants[key]


def _share(t: Tensor, given: torch.Size) -> Tensor:
    """The gradient of a mean; that of the loss itself is known."""
    n = given.numel()
    return (_constant(1 / n, t) if n and t is one_like(t) else t / n).expand(given)


def _shape(node: Any) -> torch.Size:
    return torch.Size(node._input_metadata[0].shape)


def _nothing(*_: Any) -> tuple[Any, ...]:
    return ()


def _given(_: Any, following: Any) -> tuple[Any, ...]:
    return (_shape(following[0][0]),)


def _both(node: Any, following: Any) -> tuple[Any, ...]:
    return _shape(following[0][0]), _shape(node)


def _other(node: Any, _: Any) -> tuple[Any, ...]:
    return (node._saved_other,)


def _by_constant(node: Any, following: Any) -> bool:
    """Whether the operator multiplies by a constant from the right, and leaves the shape as it was."""
    return following[1][0] is None and _shape(following[0][0]) == _shape(node)


def _whole_row(node: Any, following: Any) -> bool:
    row = following[0][0]
    plain = node._saved_alpha == 1 and node._saved_beta == 1
    return plain and (row is None or tuple(_shape(row)) == tuple(_shape(node)[1:]))


def _logits(node: Any, _: Any) -> tuple[Any, ...]:
    x = node._saved_self
    return x, node._saved_target, x.numel() if node._saved_reduction == 1 else 1


def _plain_logits(node: Any, following: Any) -> bool:
    weighted = node._saved_weight is not None or node._saved_pos_weight is not None
    return not weighted and node._saved_reduction != 0 and following[1][0] is None


def _softplus_second(product: Tensor, x: Tensor, beta: Any, threshold: Any) -> Tensor:
    # The slope, which is exactly 1 above the threshold.
    slope = _aten.softplus_backward.default(one_like(x).expand_as(x), x, beta, threshold)
    return _times(_sigmoid_backward(product, slope), beta)


_sigmoid_backward = _aten.sigmoid_backward.default
_tanh_backward = _aten.tanh_backward.default
_leaky_backward = _aten.leaky_relu_backward.default
_threshold_backward = _aten.threshold_backward.default
_RESHAPE = One(_both, lambda t, given, _: t.reshape(given), lambda t, _, out: t.reshape(out))

# By the name of the node.
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
