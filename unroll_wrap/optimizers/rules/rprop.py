"""Rprop (Riedmiller & Braun 1993), as torch.optim writes it."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..rule import UpdateRule


class RpropState(NamedTuple):
    """The number of updates, the last gradient, and a step size for every entry."""

    step: float
    prev: Tensor
    step_size: Tensor


@dataclass(frozen=True)
class Rprop(UpdateRule):
    """θ ← θ - sign(g) · s; s grows by η⁺ where g keeps its sign, and shrinks by η⁻ where g changes it: θ then stays.

    The sign is constant almost everywhere, and s changes by constant factors, so the second term of Eq. 12 is zero
    almost everywhere.
    """

    lr: Any
    etas: tuple[float, float]
    step_sizes: tuple[float, float]
    maximize: bool

    def init(self, param: Tensor) -> RpropState:
        """Return the state before the first update, with step sizes of lr."""
        return RpropState(0.0, torch.zeros_like(param), torch.full_like(param, float(self.lr)))

    def update(self, param: Tensor, grad: Tensor, state: RpropState) -> tuple[Tensor, RpropState]:
        """Take one step, in the order of operations of ``torch.optim.rprop._single_tensor_rprop``."""
        shrink, grow = self.etas
        if self.maximize:
            grad = -grad
        agreement = grad * state.prev
        factor = torch.ones_like(grad).masked_fill(agreement > 0, grow).masked_fill(agreement < 0, shrink)
        step_size = (state.step_size * factor).clamp(*self.step_sizes)
        grad = grad.masked_fill(agreement < 0, 0)
        return torch.addcmul(param, grad.sign(), step_size, value=-1), RpropState(state.step + 1, grad, step_size)
