"""Averaged gradient descent (Polyak & Juditsky 1992), as torch.optim writes it."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..rule import Scalar, UpdateRule, decayed


class ASGDState(NamedTuple):
    """The number of updates, the next step size, the next averaging weight, and the average."""

    step: float
    eta: Scalar
    mu: Scalar
    ax: Tensor


@dataclass(frozen=True)
class ASGD(UpdateRule):
    """θ ← (1 - lambd · η) · θ - η · g, with η = lr / (1 + lambd · lr · t)^alpha.

    The average of the iterates since t0 is kept beside them; torch never puts it into the network.
    """

    lr: Any
    lambd: float
    alpha: float
    t0: float
    weight_decay: float
    maximize: bool
    foreach: bool | None

    def init(self, param: Tensor) -> ASGDState:
        return ASGDState(0.0, Scalar.of(self.lr), Scalar.of(1.0), torch.zeros_like(param))

    def update(self, param: Tensor, grad: Tensor, state: ASGDState) -> tuple[Tensor, ASGDState]:
        """Take one step, in the order of operations of ``torch.optim.asgd._single_tensor_asgd``."""
        step, eta, mu = state.step + 1, float(state.eta), float(state.mu)
        param, grad = decayed(self, param, grad)
        param = torch.add(param * (1 - self.lambd * eta), grad, alpha=-eta)
        ax = param if mu == 1 else state.ax + (param - state.ax) * mu
        # The foreach form, torch's default on CUDA, computes with the count as a tensor, in that tensor's precision.
        foreach = param.is_cuda if self.foreach is None else self.foreach
        count = torch.tensor(step).to(state.eta.tensor) if foreach else step
        next_eta = self.lr / ((1 + self.lambd * self.lr * count) ** self.alpha)
        return param, ASGDState(step, state.eta.store(next_eta), state.mu.store(1 / max(1, step - self.t0)), ax)
