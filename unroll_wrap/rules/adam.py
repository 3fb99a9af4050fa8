"""Adam (Kingma & Ba 2014) and AdamW (Loshchilov & Hutter 2017), as torch.optim writes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .rule import Pullback, UpdateRule


class AdamState(NamedTuple):
    """Updates so far, and the running moments."""

    step: float
    exp_avg: Tensor
    exp_avg_sq: Tensor
    max_exp_avg_sq: Tensor | None


@dataclass(frozen=True)
class Adam(UpdateRule):
    """θ ← θ - lr · m̂ / (√v̂ + eps), with m and v the running means of g and g².

    Weight decay joins the gradient (Adam), or shrinks the parameter itself by 1 - lr · weight_decay when
    ``decoupled_weight_decay`` (AdamW). ``amsgrad`` divides by the largest v̂ so far. Hyperparameters are numbers or
    one-element tensors, as the live optimizer has them.
    """

    lr: Any
    betas: tuple[Any, Any]
    eps: float
    weight_decay: float
    amsgrad: bool
    maximize: bool
    decoupled_weight_decay: bool = False

    def init(self, param: Tensor) -> AdamState:
        """No update yet, zero moments."""
        zeros = torch.zeros_like(param)
        return AdamState(0.0, zeros, zeros, zeros if self.amsgrad else None)

    def update(self, param: Tensor, grad: Tensor, state: AdamState) -> tuple[Tensor, AdamState]:
        """One step, in the order of operations of ``torch.optim.adam._single_tensor_adam``."""
        param, *moments = _Descent.apply(self._numbers(state.step + 1), param, grad, *state[1:])  # type: ignore[misc]
        return param, AdamState(state.step + 1, *moments)

    def with_pullback(self, param: Tensor, grad: Tensor, state: AdamState) -> tuple[Tensor, AdamState, Pullback]:
        """The same. Autograd's derivative takes three times as many operator calls, a tenth of a small net's step."""
        numbers, largest = self._numbers(state.step + 1), state.max_exp_avg_sq
        new = _descend(numbers, param, grad, *state[1:])
        moved = AdamState(state.step + 1, *new[1:])

        def back(cotangent: Sequence[Tensor | None]) -> tuple[Tensor, list[Tensor | None]]:
            bars = [torch.zeros_like(param) if bar is None else bar for bar in cotangent]
            of_grad, *of_old = _descend_back(
                numbers, param, grad, moved.exp_avg, moved.exp_avg_sq, largest, *bars, *[None] * (4 - len(bars))
            )
            return of_grad, of_old if self.amsgrad else of_old[:3]

        return new[0], moved, back

    def _numbers(self, step: float) -> "_Numbers":
        # Tensor hyperparameters keep their own precision in these, as they do in the live optimizer.
        beta1, beta2 = self.betas
        return _Numbers(
            float(beta1),
            beta2,
            float(1 - beta2),
            float(self.lr / (1 - beta1**step)),
            float((1 - beta2**step) ** 0.5),
            self.eps,
            -1 if self.maximize else 1,
            0.0 if self.decoupled_weight_decay else self.weight_decay,
            1 - self.lr * self.weight_decay if self.decoupled_weight_decay and self.weight_decay != 0 else 1,
        )


class _Numbers(NamedTuple):
    """What one update computes with; ``sign``, ``decay`` and ``shrink`` are the factors of g, of θ in g, and of θ."""

    beta1: float
    beta2: Any
    one_minus_beta2: float
    step_size: float
    root_correction: float
    eps: float
    sign: int
    decay: float
    shrink: Any


class _Descent(torch.autograd.Function):
    """``_descend`` with its derivative, for autograd."""

    @staticmethod
    def forward(
        ctx: Any, numbers: _Numbers, param: Tensor, grad: Tensor, m: Tensor, v: Tensor, largest: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        new = _descend(numbers, param, grad, m, v, largest)
        ctx.numbers = numbers
        ctx.save_for_backward(param, grad, *new[1:3], largest)
        return new

    @staticmethod
    def backward(ctx: Any, *cotangent: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("This update is differentiated once; its derivative has no graph.")
        of_grad, of_param, *of_moments = _descend_back(ctx.numbers, *ctx.saved_tensors, *cotangent)
        return None, of_param, of_grad, *of_moments


def _descend(
    numbers: _Numbers, param: Tensor, grad: Tensor, m: Tensor, v: Tensor, largest: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """θ ← θ - step_size · m / (√s / root_correction + eps), with m ← β1 m + (1 - β1) g and v ← β2 v + (1 - β2) g².

    Here s is v, or with amsgrad the largest v so far.
    """
    param, grad = _decayed(numbers, param, grad)
    m = torch.lerp(m, grad, 1 - numbers.beta1)
    v = torch.addcmul(v * numbers.beta2, grad, grad, value=numbers.one_minus_beta2)
    s = v if largest is None else torch.maximum(largest, v)
    _, denominator = _root_and_denominator(s, numbers)
    return torch.addcdiv(param, m, denominator, value=-numbers.step_size), m, v, None if largest is None else s


def _descend_back(
    numbers: _Numbers,
    param: Tensor,
    grad: Tensor,
    m: Tensor,
    v: Tensor,
    largest: Tensor | None,
    to_param: Tensor,
    to_m: Tensor,
    to_v: Tensor,
    to_s: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """The pullback of ``_descend``, given the new moments and the old s. √s has derivative 0 at 0, see ``rule.sqrt``.

    Root and denominator are made again: three calls, for two vectors less in every stored step.
    """
    _, grad = _decayed(numbers, param, grad)
    root, denominator = _root_and_denominator(v if largest is None else torch.maximum(largest, v), numbers)
    along = to_param / denominator
    to_m = torch.add(to_m, along, alpha=-numbers.step_size)
    slope = (along * m).mul_(numbers.step_size / (2 * numbers.root_correction)).div_(denominator * root)
    of_s = torch.where(root > 0, slope, root)
    to_largest = None
    if largest is None:
        to_v = to_v + of_s
    else:
        of_s = of_s if to_s is None else of_s + to_s
        # As torch.maximum has it, which gives each of two equal arguments a half.
        share = torch.heaviside(v - largest, v.new_tensor(0.5))
        to_v, to_largest = torch.addcmul(to_v, of_s, share), of_s * (1 - share)
    to_grad = torch.addcmul(to_m * (1 - numbers.beta1), to_v, grad, value=2 * numbers.one_minus_beta2)
    if numbers.shrink != 1:
        to_param = to_param * numbers.shrink
    if numbers.decay != 0:
        to_param = torch.add(to_param, to_grad, alpha=numbers.decay)
    if numbers.sign < 0:
        to_grad = -to_grad
    return to_grad, to_param, to_m * numbers.beta1, to_v * numbers.beta2, to_largest


def _decayed(numbers: _Numbers, param: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """θ and g as the moments see them."""
    if numbers.sign < 0:
        grad = -grad
    if numbers.shrink != 1:
        param = param * numbers.shrink
    if numbers.decay != 0:
        grad = torch.add(grad, param, alpha=numbers.decay)
    return param, grad


def _root_and_denominator(s: Tensor, numbers: _Numbers) -> tuple[Tensor, Tensor]:
    root = s.sqrt()
    return root, (root / numbers.root_correction).add_(numbers.eps)


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay; since torch 2.7 the optimizer says so itself, before that by its class."""

    decoupled_weight_decay: bool = True
