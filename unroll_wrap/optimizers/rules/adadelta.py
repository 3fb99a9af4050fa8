"""Adadelta (Zeiler 2012), as torch.optim writes it."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..rule import UpdateRule, decayed, sqrt


class AdadeltaState(NamedTuple):
    """The number of updates, and the running means of g² and of Δ²."""

    step: float
    square_avg: Tensor
    acc_delta: Tensor


@dataclass(frozen=True)
class Adadelta(UpdateRule):
    """θ ← θ - lr · Δ, with Δ = g · √(u + eps) / √(v + eps), and u, v the running means of Δ² and g²."""

    lr: Any
    rho: float
    eps: float
    weight_decay: float
    maximize: bool

    def init(self, param: Tensor) -> AdadeltaState:
        zeros = torch.zeros_like(param)
        return AdadeltaState(0.0, zeros, zeros)

    def update(self, param: Tensor, grad: Tensor, state: AdadeltaState) -> tuple[Tensor, AdadeltaState]:
        """Take one step, in the order of operations of ``torch.optim.adadelta._single_tensor_adadelta``."""
        param, grad = decayed(self, param, grad)
        square_avg = torch.addcmul(state.square_avg * self.rho, grad, grad, value=1 - self.rho)
        # Away from 0 the plain root has the same derivative in fewer calls.
        root = torch.sqrt if self.eps > 0 else sqrt
        delta = root(state.acc_delta + self.eps) / root(square_avg + self.eps) * grad
        acc_delta = torch.addcmul(state.acc_delta * self.rho, delta, delta, value=1 - self.rho)
        return torch.add(param, delta, alpha=-float(self.lr)), AdadeltaState(state.step + 1, square_avg, acc_delta)
