"""A2Grad (Deng et al. 2018) in its three forms, as torch_optimizer writes it."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..rule import UpdateRule, sqrt


class A2GradState(NamedTuple):
    """The number of updates, the last α, the noise estimates v and its running mean, the mean of g, and x.

    The optimizer keeps the noise as a Python number, although it depends on the gradients.
    """

    step: float
    alpha_k: float
    v_k: Tensor
    v_kk: Tensor | None
    avg_grad: Tensor | None
    x_k: Tensor | None


@dataclass(frozen=True)
class A2GradUni(UpdateRule):
    """x ← x - c · g,  θ ← (1 - α) · θ + α · x - (1 - α) · α_prev · c · g,  with c = 1 / (2 lips / (k + 1) + beta · h).

    h² is the noise: the sum of ‖g - ḡ‖² over all updates, where ḡ is the mean of g so far.
    """

    beta: float
    lips: float
    elementwise: ClassVar[bool] = False

    def init(self, param: Tensor) -> A2GradState:
        return A2GradState(0.0, 1.0, param.new_zeros(()), None, None, None)

    def noise(self, deviation: Tensor, state: A2GradState) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return the noise estimates after this update, and h."""
        v_k = state.v_k + deviation
        return v_k, None, sqrt(v_k)

    def update(self, param: Tensor, grad: Tensor, state: A2GradState) -> tuple[Tensor, A2GradState]:
        """Take one step, in the order of operations of ``torch_optimizer.a2grad``."""
        k = state.step
        avg_grad = grad if state.avg_grad is None else state.avg_grad
        avg_grad = (avg_grad * k + grad) / (k + 1)
        v_k, v_kk, h = self.noise((grad - avg_grad).square().sum(), state)
        coefficient = 1 / (2 * self.lips / (k + 1) + self.beta * h)
        x_k = (param if state.x_k is None else state.x_k) - coefficient * grad
        alpha = 2 / (k + 3)
        param = param * (1 - alpha) + alpha * x_k - (1 - alpha) * state.alpha_k * coefficient * grad
        return param, A2GradState(k + 1, alpha, v_k, v_kk, avg_grad, x_k)


@dataclass(frozen=True)
class A2GradInc(A2GradUni):
    """A2Grad with noise that forgets: h² = v with v ← v · (k / (k + 1))² + ‖g - ḡ‖²."""

    def noise(self, deviation: Tensor, state: A2GradState) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return the noise estimate after this update, and h = √v."""
        v_k = state.v_k * (state.step / (state.step + 1)) ** 2 + deviation
        return v_k, None, sqrt(v_k)


@dataclass(frozen=True)
class A2GradExp(A2GradUni):
    """A2Grad with h² = (k + 1) · v, where v is the largest running mean of the noise so far."""

    rho: float

    def noise(self, deviation: Tensor, state: A2GradState) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return the largest and the current running mean of the noise after this update, and h."""
        v_kk = deviation if state.v_kk is None else state.v_kk * self.rho + (1 - self.rho) * deviation
        v_k = torch.maximum(v_kk, state.v_k)
        return v_k, v_kk, sqrt((state.step + 1) * v_k)
