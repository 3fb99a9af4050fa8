"""Muon (Jordan et al. 2024), as torch.optim writes it."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..rule import UpdateRule


class MuonState(NamedTuple):
    """The running mean of the gradient."""

    momentum_buffer: Tensor


@dataclass(frozen=True)
class Muon(UpdateRule):
    """θ ← (1 - lr · weight_decay) · θ - lr · c(shape) · NS(b), with b the running mean of g.

    NS is the Newton-Schulz iteration, which brings all singular values of a matrix near 1. Torch runs it in bfloat16;
    here, the value is the one rounded by bfloat16, and the derivative is that of the iteration without rounding.
    """

    lr: Any
    weight_decay: float
    momentum: float
    nesterov: bool
    ns_coefficients: tuple[float, float, float]
    eps: float
    ns_steps: int
    adjust_lr_fn: str | None
    elementwise: ClassVar[bool] = False

    def init(self, param: Tensor) -> MuonState:
        return MuonState(torch.zeros_like(param))

    def update(self, param: Tensor, grad: Tensor, state: MuonState) -> tuple[Tensor, MuonState]:
        """Take one step, in the order of operations of ``torch.optim._muon._single_tensor_muon``."""
        buffer = torch.lerp(state.momentum_buffer, grad, 1 - self.momentum)
        direction = torch.lerp(grad, buffer, self.momentum) if self.nesterov else buffer
        smooth = self._newton_schulz(direction)
        with torch.no_grad():
            rounding = self._newton_schulz(direction.bfloat16()).to(smooth.dtype) - smooth
        param = param * (1 - self.lr * self.weight_decay)
        return torch.add(param, smooth + rounding, alpha=-float(self._adjusted_lr(param.shape))), MuonState(buffer)

    def _newton_schulz(self, matrix: Tensor) -> Tensor:
        a, b, c = self.ns_coefficients
        tall = matrix.size(0) > matrix.size(1)
        x = matrix.T if tall else matrix
        x = x / x.norm().clamp(min=self.eps)
        for _ in range(self.ns_steps):
            gram = x @ x.T
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return x.T if tall else x

    def _adjusted_lr(self, shape: torch.Size) -> Any:
        rows, columns = shape
        if self.adjust_lr_fn in (None, "original"):
            return self.lr * math.sqrt(max(1, rows / columns))
        if self.adjust_lr_fn == "match_rms_adamw":
            return self.lr * (0.2 * math.sqrt(max(rows, columns)))
        if self.adjust_lr_fn == "spectral_unclamped":
            return self.lr * math.sqrt(rows / columns)
        raise ValueError(f"Muon has adjust_lr_fn={self.adjust_lr_fn!r}; no rule for it is known.")
