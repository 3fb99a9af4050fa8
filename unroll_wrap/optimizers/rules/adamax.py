"""Adamax (Kingma & Ba 2014, section 7.1), as torch.optim writes it."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..rule import UpdateRule, decayed


class AdamaxState(NamedTuple):
    """The number of updates, the running mean of g, and the decaying maximum of |g|."""

    step: float
    exp_avg: Tensor
    exp_inf: Tensor


@dataclass(frozen=True)
class Adamax(UpdateRule):
    """θ ← θ - lr · m̂ / u, with m the running mean of g and u ← max(beta2 · u, |g| + eps)."""

    lr: Any
    betas: tuple[Any, Any]
    eps: float
    weight_decay: float
    maximize: bool

    def init(self, param: Tensor) -> AdamaxState:
        zeros = torch.zeros_like(param)
        return AdamaxState(0.0, zeros, zeros)

    def update(self, param: Tensor, grad: Tensor, state: AdamaxState) -> tuple[Tensor, AdamaxState]:
        """Take one step, in the order of operations of ``torch.optim.adamax._single_tensor_adamax``."""
        beta1, beta2 = self.betas
        step = state.step + 1
        param, grad = decayed(self, param, grad)
        exp_avg = torch.lerp(state.exp_avg, grad, 1 - float(beta1))
        exp_inf = torch.maximum(state.exp_inf * beta2, grad.abs() + self.eps)
        step_size = float(self.lr / (1 - beta1**step))
        return torch.addcdiv(param, exp_avg, exp_inf, value=-step_size), AdamaxState(step, exp_avg, exp_inf)
