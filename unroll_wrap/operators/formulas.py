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
    """The sum, where None is zero."""
    if one is None or other is None:
        return other if one is None else one
    return one + other


def times(t: Tensor, factor: float) -> Tensor:
    """The product, in no call where that is t itself."""
    return t if factor == 1 else -t if factor == -1 else t * factor


def shape_of(node: Any) -> torch.Size:
    """Of what the operator of a node has returned, or of a leaf."""
    return torch.Size(node._input_metadata[0].shape)
