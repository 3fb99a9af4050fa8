"""RAdam (Liu et al. 2019), as torch.optim writes it."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..rule import UpdateRule, decayed, sqrt


class RAdamState(NamedTuple):
    """The number of updates, and the running moments."""

    step: float
    exp_avg: Tensor
    exp_avg_sq: Tensor


@dataclass(frozen=True)
class RAdam(UpdateRule):
    """θ ← θ - lr · m̂ · r_t / (√v̂ + eps), or θ ← θ - lr · m̂ while too few updates estimate v.

    r_t rectifies the variance of 1/√v; it is defined once ρ_t = ρ_∞ - 2 t beta2^t / (1 - beta2^t) exceeds 5.
    """

    lr: Any
    betas: tuple[Any, Any]
    eps: float
    weight_decay: float
    maximize: bool
    decoupled_weight_decay: bool

    def init(self, param: Tensor) -> RAdamState:
        zeros = torch.zeros_like(param)
        return RAdamState(0.0, zeros, zeros)

    def update(self, param: Tensor, grad: Tensor, state: RAdamState) -> tuple[Tensor, RAdamState]:
        """Take one step of ``torch.optim.radam._single_tensor_radam``."""
        beta1, beta2 = self.betas
        step = state.step + 1
        param, grad = decayed(self, param, grad)
        exp_avg = torch.lerp(state.exp_avg, grad, 1 - float(beta1))
        exp_avg_sq = torch.addcmul(state.exp_avg_sq * beta2, grad, grad, value=float(1 - beta2))
        bias_correction2 = 1 - beta2**step
        rho_inf = 2 / (1 - beta2) - 1
        rho = rho_inf - 2 * step * beta2**step / bias_correction2
        # torch multiplies the tensors by one scalar after another, and a tensor lr of low precision is exact in theirs.
        step_size = float(self.lr) / (1 - beta1**step)
        if rho > 5:
            rectifier = ((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)) ** 0.5
            step_size = step_size * bias_correction2**0.5 * rectifier
            param = torch.addcdiv(param, exp_avg, sqrt(exp_avg_sq) + self.eps, value=-step_size)
        else:
            param = torch.add(param, exp_avg, alpha=-step_size)
        return param, RAdamState(step, exp_avg, exp_avg_sq)
