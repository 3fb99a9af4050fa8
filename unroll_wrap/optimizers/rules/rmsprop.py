"""RMSprop (Tieleman & Hinton 2012), as torch.optim writes it."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..rule import UpdateRule, decayed, sqrt


class RMSpropState(NamedTuple):
    """The number of updates, the running mean of g², the velocity, and, if ``centered``, the running mean of g."""

    step: float
    square_avg: Tensor
    momentum_buffer: Tensor | None
    grad_avg: Tensor | None


@dataclass(frozen=True)
class RMSprop(UpdateRule):
    """θ ← θ - lr · g / (√v + eps), with v the running mean of g², minus the squared mean of g if ``centered``.

    With momentum, θ ← θ - lr · b with the velocity b ← momentum · b + g / (√v + eps).
    """

    lr: Any
    alpha: float
    eps: float
    weight_decay: float
    momentum: float
    centered: bool
    maximize: bool

    def init(self, param: Tensor) -> RMSpropState:
        zeros = torch.zeros_like(param)
        return RMSpropState(0.0, zeros, zeros if self.momentum > 0 else None, zeros if self.centered else None)

    def adopt(self, state: RMSpropState) -> RMSpropState:
        """Return the state without the mean of g, unless ``centered``."""
        return state if self.centered else state._replace(grad_avg=None)

    def update(self, param: Tensor, grad: Tensor, state: RMSpropState) -> tuple[Tensor, RMSpropState]:
        """Take one step, in the order of operations of ``torch.optim.rmsprop._single_tensor_rmsprop``."""
        param, grad = decayed(self, param, grad)
        square_avg = torch.addcmul(state.square_avg * self.alpha, grad, grad, value=1 - self.alpha)
        variance, grad_avg, velocity = square_avg, state.grad_avg, state.momentum_buffer
        if grad_avg is not None:
            grad_avg = torch.lerp(grad_avg, grad, 1 - self.alpha)
            variance = torch.addcmul(square_avg, grad_avg, grad_avg, value=-1)
        denominator = sqrt(variance) + self.eps
        if velocity is not None:
            velocity = torch.addcdiv(velocity * self.momentum, grad, denominator)
            param = torch.add(param, velocity, alpha=-float(self.lr))
        else:
            param = torch.addcdiv(param, grad, denominator, value=-float(self.lr))
        return param, RMSpropState(state.step + 1, square_avg, velocity, grad_avg)
