"""Adam (Kingma & Ba 2014) and AdamW (Loshchilov & Hutter 2017), as torch.optim writes them."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .rule import sqrt


class AdamState(NamedTuple):
    """Updates so far, and the running moments."""

    step: float
    exp_avg: Tensor
    exp_avg_sq: Tensor
    max_exp_avg_sq: Tensor | None


@dataclass(frozen=True)
class Adam:
    """θ ← θ - lr · m̂ / (√v̂ + eps), with m and v the running means of g and g².

    Weight decay joins the gradient (Adam), or shrinks the parameter itself by 1 - lr · weight_decay when
    ``decoupled_weight_decay`` (AdamW). ``amsgrad`` divides by the largest v̂ so far. Hyperparameters are numbers or
    one-element tensors, as the live optimizer has them.
    """

    lr: Any
    beta1: Any
    beta2: Any
    eps: float
    weight_decay: float
    amsgrad: bool
    maximize: bool
    decoupled_weight_decay: bool
    elementwise: ClassVar[bool] = True

    @classmethod
    def from_group(cls, group: dict[str, Any], decoupled_weight_decay: bool = False) -> "Adam":
        """The rule that one of the optimizer's ``param_groups`` describes."""
        beta1, beta2 = group["betas"]
        return cls(
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            amsgrad=group["amsgrad"],
            maximize=group["maximize"],
            # Since torch 2.7 AdamW is an Adam with this entry; before, it was a class of its own.
            decoupled_weight_decay=group.get("decoupled_weight_decay", decoupled_weight_decay),
        )

    def init(self, param: Tensor) -> AdamState:
        """No update yet, zero moments."""
        zeros = torch.zeros_like(param)
        return AdamState(0.0, zeros, zeros, zeros if self.amsgrad else None)

    def update(self, param: Tensor, grad: Tensor, state: AdamState) -> tuple[Tensor, AdamState]:
        """One step, in the order of operations of ``torch.optim.adam._single_tensor_adam``."""
        step = state.step + 1
        if self.maximize:
            grad = -grad
        if self.weight_decay != 0:
            if self.decoupled_weight_decay:
                param = param * (1 - self.lr * self.weight_decay)
            else:
                grad = torch.add(grad, param, alpha=self.weight_decay)
        exp_avg = torch.lerp(state.exp_avg, grad, 1 - float(self.beta1))
        exp_avg_sq = torch.addcmul(state.exp_avg_sq * self.beta2, grad, grad, value=float(1 - self.beta2))
        second_moment = exp_avg_sq
        max_exp_avg_sq = None
        if self.amsgrad:
            assert state.max_exp_avg_sq is not None
            second_moment = max_exp_avg_sq = torch.maximum(state.max_exp_avg_sq, exp_avg_sq)
        # Tensor hyperparameters keep their own precision in these scalars, as they do in the live optimizer.
        step_size = float(self.lr / (1 - self.beta1**step))
        denominator = sqrt(second_moment) / float((1 - self.beta2**step) ** 0.5) + self.eps
        param = torch.addcdiv(param, exp_avg, denominator, value=-step_size)
        return param, AdamState(step, exp_avg, exp_avg_sq, max_exp_avg_sq)
