"""Adagrad (Duchi et al. 2011), as torch.optim writes it."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..rule import UpdateRule, decayed, sqrt


class AdagradState(NamedTuple):
    """The number of updates, and the sum of g²."""

    step: float
    sum: Tensor


@dataclass(frozen=True)
class Adagrad(UpdateRule):
    """θ ← θ - lr / (1 + (t - 1) · lr_decay) · g / (√s + eps), with s the sum of g² over all t updates."""

    lr: Any
    lr_decay: float
    weight_decay: float
    initial_accumulator_value: float
    eps: float
    maximize: bool

    def init(self, param: Tensor) -> AdagradState:
        """Return the state before the first update, with the initial value of the sum."""
        return AdagradState(0.0, torch.full_like(param, self.initial_accumulator_value))

    def update(self, param: Tensor, grad: Tensor, state: AdagradState) -> tuple[Tensor, AdagradState]:
        """Take one step, in the order of operations of ``torch.optim.adagrad._single_tensor_adagrad``."""
        step = state.step + 1
        param, grad = decayed(self, param, grad)
        total = torch.addcmul(state.sum, grad, grad)
        lr = float(self.lr / (1 + (step - 1) * self.lr_decay))
        return torch.addcdiv(param, grad, sqrt(total) + self.eps, value=-lr), AdagradState(step, total)
