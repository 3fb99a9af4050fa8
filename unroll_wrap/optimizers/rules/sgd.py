"""Gradient descent, plain or with momentum, as torch.optim writes it."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..rule import UpdateRule, decayed


class SGDState(NamedTuple):
    """The velocity; None before the first update, and always without momentum."""

    momentum_buffer: Tensor | None


@dataclass(frozen=True)
class SGD(UpdateRule):
    """θ ← θ - lr · b, with b ← momentum · b + (1 - dampening) · g; at the first update, b = g.

    With ``nesterov``, θ ← θ - lr · (g + momentum · b).
    """

    lr: Any
    momentum: float
    dampening: float
    weight_decay: float
    nesterov: bool
    maximize: bool

    def init(self, param: Tensor) -> SGDState:
        return SGDState(None)

    def update(self, param: Tensor, grad: Tensor, state: SGDState) -> tuple[Tensor, SGDState]:
        """Take one step, in the order of operations of ``torch.optim.sgd._single_tensor_sgd``."""
        param, grad = decayed(self, param, grad)
        buffer = state.momentum_buffer
        if self.momentum != 0:
            if buffer is None:
                buffer = grad
            else:
                buffer = torch.add(buffer * self.momentum, grad, alpha=1 - self.dampening)
            grad = torch.add(grad, buffer, alpha=self.momentum) if self.nesterov else buffer
        return torch.add(param, grad, alpha=-float(self.lr)), SGDState(buffer)
