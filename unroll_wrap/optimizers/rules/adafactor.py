"""Adafactor (Shazeer & Stern 2018), as torch.optim writes it."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..rule import UpdateRule


class AdafactorState(NamedTuple):
    """The number of updates, and the second moment: factored for matrices, whole for vectors."""

    step: float
    row_var: Tensor | None
    col_var: Tensor | None
    variance: Tensor | None


@dataclass(frozen=True)
class Adafactor(UpdateRule):
    """θ ← θ - α_t · u / max(1, RMS(u) / d), with u = g / √v and α_t = max(eps2, RMS(θ)) · min(lr, 1/√t).

    For a matrix, v is estimated from its row and column means: as their outer product, divided by the overall mean.
    """

    lr: Any
    beta2_decay: float
    eps: tuple[float | None, float]
    d: float
    weight_decay: float
    maximize: bool
    elementwise: ClassVar[bool] = False

    def init(self, param: Tensor) -> AdafactorState:
        if param.dim() > 1:
            return AdafactorState(0.0, torch.zeros_like(param[..., :1]), torch.zeros_like(param[..., :1, :]), None)
        return AdafactorState(0.0, None, None, torch.zeros_like(param))

    def update(self, param: Tensor, grad: Tensor, state: AdafactorState) -> tuple[Tensor, AdafactorState]:
        """Take one step, in the order of operations of ``torch.optim._adafactor._single_tensor_adafactor``."""
        step = state.step + 1
        eps1, eps2 = self.eps
        eps1 = torch.finfo(param.dtype).eps if eps1 is None else eps1
        if self.maximize:
            grad = -grad
        weight = step**self.beta2_decay
        size = param.numel() ** 0.5
        alpha = (_norm(param) / size).clamp(min=eps2) * float(min(self.lr, 1 / step**0.5))
        if self.weight_decay != 0:
            param = param * (1 - self.lr * self.weight_decay)
        row_var, col_var, variance = state.row_var, state.col_var, state.variance
        if row_var is not None and col_var is not None:
            row_var = torch.lerp(row_var, grad.square().mean(-1, keepdim=True), weight)
            col_var = torch.lerp(col_var, grad.square().mean(-2, keepdim=True), weight)
            estimate = row_var @ col_var / row_var.mean(-2, keepdim=True).clamp(min=eps1)
        else:
            assert variance is not None
            estimate = variance = torch.lerp(variance, grad * grad, weight)
        change = estimate.clamp(min=eps1 * eps1).rsqrt() * grad
        denominator = (_norm(change) / (size * self.d)).clamp(min=1)
        return param - change * (alpha / denominator), AdafactorState(step, row_var, col_var, variance)


def _norm(x: Tensor) -> Tensor:
    """Return ‖x‖₂, whose derivative torch takes to be 0 at x = 0, where it has none."""
    return torch.linalg.vector_norm(x)
