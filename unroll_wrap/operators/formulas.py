"""Formulas for the first and second derivatives of operators.

For an operator y(x) with Jacobian J(x), ``back`` computes the vector-Jacobian product x̄ = J(x)ᵀ ȳ, as autograd does.
A cotangent u of x̄ has two pullbacks: ``forth`` computes the one to ȳ, which is J(x) u, and ``bend`` the one to x, to
which it adds J(x)ᵀ λ for a cotangent λ of y. Autograd needs two graphs and several times as many calls for this.
"""

# ruff: noqa: D102, the docstrings of the base class hold for every formula.

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Tensors = Sequence[Tensor | None]
Wanted = Sequence[bool]


class Formula:
    """The derivatives of one kind of operator.

    Attributes:
        curved: whether the Jacobian depends on the operator's arguments, so that ``bend`` needs ȳ and u.
        fits: returns whether the formula holds for a node, given its ``next_functions``; None if it holds for all.
    """

    curved = True
    fits: Callable[[Any, Any], bool] | None = None

    def saved(self, node: Any, following: Any) -> Any:
        """Return what the node has saved. Torch raises an error if a saved tensor has been changed in place."""
        raise NotImplementedError

    def back(self, saved: Any, bar: Tensor, wanted: Wanted) -> Tensors:
        """Return J(x)ᵀ ȳ, one entry for each input."""
        raise NotImplementedError

    def forth(self, saved: Any, us: Tensors) -> Tensor | None:
        """Return J(x) u; None stands for zero."""
        raise NotImplementedError

    def bend(self, saved: Any, lam: Tensor | None, bar: Tensor, us: Tensors, kept: Any, wanted: Wanted) -> Tensors:
        """Return J(x)ᵀ λ + (∂/∂x) ⟨u, J(x)ᵀ ȳ⟩, one entry for each input.

        Args:
            saved: what ``saved`` returned.
            lam: λ; None for zero.
            bar: ȳ.
            us: u, one entry for each input; None for zero.
            kept: what ``kept`` returned.
            wanted: for each input, whether its entry is needed.
        """
        raise NotImplementedError

    def kept(self, found: Tensors) -> Any:  # noqa: ARG002
        """Return the part of the result of ``back`` that ``bend`` uses again; the memory of the rest is freed."""
        return None


class One(Formula):
    """The formula of an operator whose first input is the only differentiable one.

    Args:
        read: returns what the node has saved, given the node and its ``next_functions``.
        back: maps ȳ and the saved values to J(x)ᵀ ȳ.
        forth: maps u and the saved values to J(x) u; None if ``back`` does, as for every elementwise operator.
        second: maps u · ȳ and the saved values to (∂/∂x) ⟨u, J(x)ᵀ ȳ⟩; None for a piecewise linear operator.
        fits: the attribute of the same name of ``Formula``.
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
    """y = a + sign · alpha · b, of two tensors of one shape, or of a tensor and a constant."""

    curved = False

    def __init__(self, sign: int) -> None:
        self._sign = sign

    @staticmethod
    def fits(node: Any, following: Any) -> bool:
        """Return whether every differentiable input has the shape of the result, so that none is broadcast."""
        out = shape_of(node)
        return all(n is None or shape_of(n) == out for n, _ in following)

    def saved(self, node: Any, following: Any) -> Any:  # noqa: ARG002
        return self._sign * node._saved_alpha

    def back(self, saved: Any, bar: Tensor, wanted: Wanted) -> Tensors:
        return bar, times(bar, saved) if len(wanted) > 1 and wanted[1] else None

    def forth(self, saved: Any, us: Tensors) -> Tensor | None:
        one, other = (*us, None)[:2]
        if other is None:
            return one
        return times(other, saved) if one is None else torch.add(one, other, alpha=saved)

    def bend(self, saved: Any, lam: Tensor | None, bar: Tensor, us: Tensors, kept: Any, wanted: Wanted) -> Tensors:  # noqa: ARG002
        return () if lam is None else self.back(saved, lam, wanted)


def plus(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Return the sum; None stands for zero."""
    if one is None or other is None:
        return other if one is None else one
    return one + other


def times(t: Tensor, factor: float) -> Tensor:
    """Return the product; without calling an operator if the factor is 1."""
    return t if factor == 1 else -t if factor == -1 else t * factor


def shape_of(node: Any) -> torch.Size:
    """Return the shape of the tensor that a node stands for: the result of its operator, or the leaf."""
    return torch.Size(node._input_metadata[0].shape)
