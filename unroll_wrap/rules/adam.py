"""Adam (Kingma & Ba 2014) and AdamW (Loshchilov & Hutter 2017), as torch.optim writes them."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .rule import UpdateRule, sqrt


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
        beta1, beta2 = self.betas
        step = state.step + 1
        if self.maximize:
            grad = -grad
        if self.weight_decay != 0:
            if self.decoupled_weight_decay:
                param = param * (1 - self.lr * self.weight_decay)
            else:
                grad = torch.add(grad, param, alpha=self.weight_decay)
        exp_avg = torch.lerp(state.exp_avg, grad, 1 - float(beta1))
        exp_avg_sq = torch.addcmul(state.exp_avg_sq * beta2, grad, grad, value=float(1 - beta2))
        second_moment = exp_avg_sq
        max_exp_avg_sq = None
        if self.amsgrad:
            assert state.max_exp_avg_sq is not None
            second_moment = max_exp_avg_sq = torch.maximum(state.max_exp_avg_sq, exp_avg_sq)
        # Tensor hyperparameters keep their own precision in these scalars, as they do in the live optimizer.
        step_size = float(self.lr / (1 - beta1**step))
        denominator = sqrt(second_moment) / float((1 - beta2**step) ** 0.5) + self.eps
        param = torch.addcdiv(param, exp_avg, denominator, value=-step_size)
        return param, AdamState(step, exp_avg, exp_avg_sq, max_exp_avg_sq)


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay; since torch 2.7 the optimizer says so itself, before that by its class."""

    decoupled_weight_decay: bool = True
