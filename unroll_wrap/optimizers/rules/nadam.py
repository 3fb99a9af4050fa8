"""NAdam (Dozat 2016), as torch.optim writes it."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..rule import Scalar, UpdateRule, decayed, sqrt


class NAdamState(NamedTuple):
    """The number of updates, the product Πμ of the momentum schedule, and the running moments."""

    step: float
    mu_product: Scalar
    exp_avg: Tensor
    exp_avg_sq: Tensor


@dataclass(frozen=True)
class NAdam(UpdateRule):
    """θ ← θ - lr · ((1 - μ_t) / (1 - Πμ) · g + μ_{t+1} / (1 - Πμ · μ_{t+1}) · m) / (√v̂ + eps).

    This is Adam with Nesterov's look-ahead, and μ_t = beta1 · (1 - 0.5 · 0.96^(t · momentum_decay)).
    """

    lr: Any
    betas: tuple[Any, Any]
    eps: float
    weight_decay: float
    momentum_decay: float
    maximize: bool
    decoupled_weight_decay: bool

    def init(self, param: Tensor) -> NAdamState:
        zeros = torch.zeros_like(param)
        return NAdamState(0.0, Scalar.of(1.0), zeros, zeros)

    def update(self, param: Tensor, grad: Tensor, state: NAdamState) -> tuple[Tensor, NAdamState]:
        """Take one step of ``torch.optim.nadam._single_tensor_nadam``."""
        beta1, beta2 = self.betas
        step = state.step + 1
        param, grad = decayed(self, param, grad)
        mu = beta1 * (1 - 0.5 * 0.96 ** (step * self.momentum_decay))
        mu_next = beta1 * (1 - 0.5 * 0.96 ** ((step + 1) * self.momentum_decay))
        mu_product = state.mu_product.times(mu)
        exp_avg = torch.lerp(state.exp_avg, grad, 1 - float(beta1))
        exp_avg_sq = torch.addcmul(state.exp_avg_sq * beta2, grad, grad, value=float(1 - beta2))
        denominator = sqrt(exp_avg_sq / float(1 - beta2**step)) + self.eps
        product = float(mu_product)
        # torch divides twice; dividing the sum once takes half the work in the derivative.
        of_grad, of_avg = float(self.lr * (1 - mu) / (1 - product)), float(self.lr * mu_next / (1 - product * mu_next))
        direction = torch.add(grad * of_grad, exp_avg, alpha=of_avg)
        param = torch.addcdiv(param, direction, denominator, value=-1)
        return param, NAdamState(step, mu_product, exp_avg, exp_avg_sq)
