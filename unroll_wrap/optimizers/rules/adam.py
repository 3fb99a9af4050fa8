"""Adam (Kingma & Ba 2014) and AdamW (Loshchilov & Hutter 2017), as torch.optim writes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..closed import ClosedRule, plus_product, plus_quotient, plus_scaled

_masked = torch.ops.aten.threshold_backward.default


class AdamState(NamedTuple):
    """The number of updates so far, the running moments, and under ``amsgrad`` the largest second moment."""

    step: float
    exp_avg: Tensor
    exp_avg_sq: Tensor
    max_exp_avg_sq: Tensor | None


class AdamNumbers(NamedTuple):
    """The numbers of one update."""

    beta1: Any  # β₁, the factor of the old m.
    one_minus_beta1: Any  # The factor of g in the new m.
    beta2: Any  # β₂, the factor of the old v.
    one_minus_beta2: Any  # The factor of g² in the new v.
    step_size: Any  # lr / (1 - β₁ᵗ), which includes the bias correction of m.
    root_correction: Any  # √(1 - β₂ᵗ), the bias correction of √v.
    eps: Any  # The constant that is added to √v̂.
    decay: Any  # The factor of θ that weight decay adds to g.
    shrink: Any  # The factor by which decoupled weight decay multiplies θ.


@dataclass(frozen=True)
class Adam(ClosedRule):
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
    fused: bool | None = None

    def init(self, param: Tensor) -> AdamState:
        """Return the state before the first update, with moments of zero."""
        zeros = torch.zeros_like(param)
        return AdamState(0.0, zeros, zeros, zeros if self.amsgrad else None)

    def adopt(self, state: AdamState) -> AdamState:
        """Return the state without the largest v, unless ``amsgrad`` uses it."""
        return state if self.amsgrad else state._replace(max_exp_avg_sq=None)

    def numbers(self, state: AdamState) -> AdamNumbers:
        """Return the numbers of the next update, with its bias corrections."""
        # Hyperparameters that are tensors are computed with in their own precision, as in the live optimizer, except
        # that its fused kernel takes the learning rate as a number.
        (beta1, beta2), lr = self.betas, float(self.lr) if self.fused else self.lr
        step = state.step + 1
        return AdamNumbers(
            float(beta1),
            1 - float(beta1),
            beta2,
            float(1 - beta2),
            float(lr / (1 - beta1**step)),
            float((1 - beta2**step) ** 0.5),
            self.eps,
            self.weight_decay,
            1 - lr * self.weight_decay,
        )

    def switches(self) -> tuple[bool, ...]:
        """Return the options that choose operations; ``amsgrad`` is left out, because the state shows it."""
        return self.maximize, self.weight_decay != 0, self.decoupled_weight_decay

    def following(self, state: AdamState, after: Sequence[Tensor]) -> AdamState:
        """Return the state after one more update, with the tensors ``after``."""
        m, v, *largest = after
        return AdamState(state.step + 1, m, v, largest[0] if largest else None)

    def descend(self, numbers: AdamNumbers, param: Tensor, grad: Tensor, *before: Tensor) -> tuple[Tensor, ...]:
        """Return what an update gives, in the order of operations of ``torch.optim.adam._single_tensor_adam``."""
        m, v, *largest = before
        param, grad = self._decayed(numbers, param, grad)
        m = torch.lerp(m, grad, numbers.one_minus_beta1)
        v = plus_product(v * numbers.beta2, grad, grad, numbers.one_minus_beta2)
        s = torch.maximum(largest[0], v) if largest else v
        denominator = s.sqrt() / numbers.root_correction + numbers.eps
        param = plus_quotient(param, m, denominator, -numbers.step_size)
        return (param, m, v, s) if largest else (param, m, v)

    def ascend(
        self,
        numbers: AdamNumbers,
        param: Tensor,
        grad: Tensor,
        before: Sequence[Tensor],
        after: Sequence[Tensor],
        bars: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        """Pull cotangents back through ``descend``; √v has the derivative 0 at 0, as in ``rule.sqrt``.

        With c² the bias correction of v, the denominator is (√v + c · eps) / c. The root and the denominator are
        computed again, which takes two calls and saves two vectors in every stored step.
        """
        _, grad = self._decayed(numbers, param, grad)
        (m, v, *largest), (of_param, of_m, of_v, *of_largest) = after, bars
        root = (largest[0] if largest else v).sqrt()
        denominator = root + numbers.root_correction * numbers.eps
        step = numbers.step_size * numbers.root_correction
        along = of_param / denominator
        of_m = plus_scaled(of_m, along, -step)
        # The slope is 0 where the root is 0, and nan stays nan.
        slope = _masked(m / (denominator * root), root, 0)
        if largest:
            of_s = plus_product(of_largest[0], along, slope, step / 2)
            # The derivative of torch.maximum gives a half to each of two equal arguments.
            share = torch.heaviside(v - before[2], torch.full_like(v, 0.5))
            of_v, of_largest = plus_product(of_v, of_s, share, 1), [of_s * (1 - share)]
        else:
            of_v = plus_product(of_v, along, slope, step / 2)
        new, of_m, old_v = _times((of_m, of_m, of_v), (numbers.one_minus_beta1, numbers.beta1, numbers.beta2))
        of_grad = plus_product(new, of_v, grad, 2 * numbers.one_minus_beta2)
        if self.weight_decay != 0:
            if self.decoupled_weight_decay:
                of_param = of_param * numbers.shrink
            else:
                of_param = plus_scaled(of_param, of_grad, numbers.decay)
        if self.maximize:
            of_grad = -of_grad
        return of_grad, of_param, of_m, old_v, *of_largest

    def _decayed(self, numbers: AdamNumbers, param: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Return θ and g after ``maximize`` and weight decay."""
        if self.maximize:
            grad = -grad
        if self.weight_decay != 0:
            if self.decoupled_weight_decay:
                param = param * numbers.shrink
            else:
                grad = plus_scaled(grad, param, numbers.decay)
        return param, grad


def _times(tensors: Sequence[Tensor], factors: Sequence[Any]) -> Sequence[Tensor]:
    """Return each tensor times its factor, in one call if the factors are numbers."""
    if any(isinstance(f, Tensor) for f in factors):
        return [t * f for t, f in zip(tensors, factors, strict=True)]
    return torch._foreach_mul(list(tensors), [float(f) for f in factors])  # pyright: ignore[reportPrivateImportUsage]


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay. Before torch 2.7 only the optimizer's class shows that, and no option."""

    decoupled_weight_decay: bool = True
