"""The formulas of convolutions and of batch normalization, for the nodes of torch and of this package."""

# ruff: noqa: D102, the docstrings of the base class hold for every formula.

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .batch_norm import _BatchNorm, kernel
from .convolution import _Convolution, input_gradient
from .formulas import Formula, Tensors, Wanted, plus
from .formulas_of_operators import FORMULAS

_aten = torch.ops.aten


class Convolution(Formula):
    """y = W * x + b, which is bilinear: ``bend`` needs only gradients of convolutions, with a tangent for W or x."""

    def saved(self, node: Any, following: Any) -> Any:  # noqa: ARG002
        geometry = [getattr(node, f"_saved_{name}") for name in ("stride", "padding", "dilation")]
        geometry += [node._saved_transposed, node._saved_output_padding, node._saved_groups]
        return node._saved_input, node._saved_weight, geometry

    def back(self, saved: Any, bar: Tensor, wanted: Wanted) -> Tensors:
        x, weight, geometry = saved
        return self._gradients(bar, x, weight, geometry, wanted[:3])

    def forth(self, saved: Any, us: Tensors) -> Tensor | None:
        (x, weight, geometry), (u_x, u_weight, u_bias) = saved, (*us, None)[:3]
        found = None
        if u_weight is not None:
            found, u_bias = _aten.convolution.default(x, u_weight, u_bias, *geometry), None
        elif u_x is None and u_bias is not None:
            u_x = torch.zeros_like(x)
        return found if u_x is None else plus(found, _aten.convolution.default(u_x, weight, u_bias, *geometry))

    def bend(self, saved: Any, lam: Tensor | None, bar: Tensor, us: Tensors, kept: Any, wanted: Wanted) -> Tensors:  # noqa: ARG002
        (x, weight, geometry), (u_x, u_weight, *_), (of_x, of_weight, *_) = saved, us, wanted
        to_x = to_weight = to_bias = None
        if lam is not None:
            to_x, to_weight, to_bias = self._gradients(lam, x, weight, geometry, wanted[:3])
        if of_x and u_weight is not None:
            to_x = plus(to_x, self._gradients(bar, x, u_weight, geometry, (True, False, False))[0])
        if of_weight and u_x is not None:
            to_weight = plus(to_weight, self._gradients(bar, u_x, weight, geometry, (False, True, False))[1])
        return to_x, to_weight, to_bias

    def _gradients(self, bar: Tensor, x: Tensor, weight: Tensor, geometry: Any, wanted: Wanted) -> Any:
        of_x, of_weight, of_bias = (*wanted, False)[:3]
        bias = [bar.shape[1]] if of_bias else None
        return _aten.convolution_backward.default(bar, x, weight, bias, *geometry, [of_x, of_weight, of_bias])


class FewChannels(Convolution):
    """The convolution of ``convolution.py``, whose gradient with respect to x is a convolution by phases."""

    def saved(self, node: Any, following: Any) -> Any:  # noqa: ARG002
        stride, padding = node.geometry
        return *node.saved_tensors, [[stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1]

    def bend(self, saved: Any, lam: Tensor | None, bar: Tensor, us: Tensors, kept: Any, wanted: Wanted) -> Tensors:
        (x, weight, geometry), u_weight = saved, us[1]
        if not (wanted[0] and lam is not None and u_weight is not None):
            return super().bend(saved, lam, bar, us, kept, wanted)
        # The sum of two of these gradients is one gradient over the channels of both.
        to_x = self._data(torch.cat([lam, bar], 1), x, torch.cat([weight, u_weight]), geometry)
        return to_x, *super().bend(saved, lam, bar, us, kept, (False, *wanted[1:]))[1:]

    def _gradients(self, bar: Tensor, x: Tensor, weight: Tensor, geometry: Any, wanted: Wanted) -> Any:
        if not any(wanted[1:]):
            return self._data(bar, x, weight, geometry) if wanted[0] else None, None, None
        rest = super()._gradients(bar, x, weight, geometry, (False, *wanted[1:]))[1:]
        return self._data(bar, x, weight, geometry) if wanted[0] else None, *rest

    def _data(self, bar: Tensor, x: Tensor, weight: Tensor, geometry: Any) -> Tensor:
        return input_gradient(bar, weight, x.shape[2:], geometry[0][0], geometry[1][0])


class BatchNorm(Formula):
    """y = γ x̂ + β with x̂ = (x - μ) r: x̄ = γ r P(ȳ), γ̄ = Σ ȳ x̂, β̄ = Σ ȳ, with P(w) = w - mean(w) - x̂ mean(w x̂).

    For cotangents u, v and s of x̄, γ̄ and β̄ and λ of y, with n entries in a channel and S = Σ u P(ȳ)::

        forth:  γ r P(u) + v x̂ + s
        by x:   r P(w + γ λ) - x̂ γ r² S / n,   w = (v - γ r Σ u x̂ / n) ȳ - γ r (Σ ȳ x̂ / n) u
        by γ:   Σ λ x̂ + r S
        by β:   Σ λ

    The backward kernel computes γ r P(ȳ) and both sums, and r P of any other tensor too. The forward kernel computes
    the product of x̂ with any vector. The rest is a few operators on vectors with one number for each channel.
    """

    def __init__(self, read: Callable[[Any], tuple[Any, ...]], fits: Callable[[Any, Any], bool] | None = None) -> None:
        self._read, self.fits = read, fits

    def saved(self, node: Any, following: Any) -> Any:  # noqa: ARG002
        # The last entry takes the sums that ``forth`` computes, for use by ``bend``.
        return [*self._read(node), []]

    def back(self, saved: Any, bar: Tensor, wanted: Wanted) -> Tensors:  # noqa: ARG002
        x, weight, mean, r, eps, _ = saved
        return kernel(bar, x, weight, mean, r, eps)

    def kept(self, found: Tensors) -> Any:
        return found[1:]

    def forth(self, saved: Any, us: Tensors) -> Tensor | None:
        (x, weight, mean, r, eps, _), (u, v, s) = saved, (*us, None, None)[:3]
        through = None
        if u is not None:
            through, *saved[5] = kernel(u, x, weight, mean, r, eps)
        if v is None:
            return through if s is None else (through if through is not None else torch.zeros_like(x)) + _wide(s, x)
        return plus(through, _normalized(x, v, s, eps))

    def bend(self, saved: Any, lam: Tensor | None, bar: Tensor, us: Tensors, kept: Any, wanted: Wanted) -> Tensors:
        (x, weight, mean, r, eps, known), (u, v, *_) = saved, (*us, None)[:2]
        n = x.numel() // x.shape[1]
        gain = r if weight is None else weight * r
        along, total = kept
        sums = (None, None)
        if lam is not None and weight is not None and any(wanted[1:3]):
            sums = kernel(lam, x, weight, mean, r, eps, (False, True, True))[1:]
        inner = lam if lam is None or weight is None else lam * _wide(weight, x)
        if u is None:
            of_bar, curve = v, None
        else:
            u_along, u_total = known or kernel(u, x, weight, mean, r, eps, (False, True, True))[1:]
            both = torch.addcmul((u * bar).sum([d for d in range(x.dim()) if d != 1]), u_total, total, value=-1 / n)
            curve = r * torch.addcmul(both, u_along, along, value=-1 / n)
            inner = _plus_product(inner, u, _wide(gain * along, x), -1 / n)
            of_bar = _plus_product(v, gain, u_along, -1 / n)
        if of_bar is not None:
            inner = _plus_product(inner, bar, _wide(of_bar, x), 1)
        to_x = None
        if wanted[0] and inner is not None:
            to_x = kernel(inner, x, None, mean, r, eps, (True, False, False))[0]
            if curve is not None:
                to_x = torch.add(to_x, _normalized(x, gain * curve, None, eps), alpha=-1 / n)
        return to_x, plus(sums[0], curve), sums[1]


def _plus_product(total: Tensor | None, one: Tensor, other: Tensor, factor: float) -> Tensor:
    if total is None:
        return one * other if factor == 1 else one * other * factor
    return torch.addcmul(total, one, other, value=factor)


def _wide(vector: Tensor, x: Tensor) -> Tensor:
    return vector.view(-1, *[1] * (x.dim() - 2))


def _normalized(x: Tensor, scale: Tensor, shift: Tensor | None, eps: float) -> Tensor:
    """Return scale · x̂ + shift."""
    return torch.native_batch_norm(x, scale, shift, None, None, True, 0.0, eps)[0]


def _of_torch(node: Any) -> tuple[Any, ...]:
    return node._saved_input, node._saved_weight, node._saved_result1, node._saved_result2, node._saved_eps


# The keys are classes, because a function of the user's may have a node of the same name.
LAYERS: dict[Any, Formula] = {
    _Convolution: FewChannels(),
    _BatchNorm: BatchNorm(lambda node: (*node.saved_tensors, node.eps)),
}
FORMULAS["ConvolutionBackward0"] = Convolution()
FORMULAS["NativeBatchNormBackward0"] = BatchNorm(_of_torch, lambda node, _: node._saved_training)
