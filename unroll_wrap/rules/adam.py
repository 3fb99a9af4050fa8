"""Adam (Kingma & Ba 2014) and AdamW (Loshchilov & Hutter 2017), as torch.optim writes them."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .rule import UpdateRule


class AdamState(NamedTuple):
    """Updates so far, and the running moments."""

    step: float
    exp_avg: Tensor
    exp_avg_sq: Tensor
    max_exp_avg_sq: Tensor | None


@dataclass(frozen=True)
class Adam(UpdateRule):
    """θ ← θ - lr · m̂ / (√v̂ + eps), with m and v the running means of g and g².

    Weight decay joins the gradient (Adam), or shrinks the parameter itself by 1 - lr · weight_decay when
    ``decoupled_weight_decay`` (AdamW). ``amsgrad`` divides by the largest v̂ so far. Hyperparameters are numbers or
    one-element tensors, as the live optimizer has them.
    """

    lr: Any
    betas: tuple[Any, Any]
    eps: float
    weight_decay: float
    amsgrad: bool
    maximize: bool
    decoupled_weight_decay: bool = False

    def init(self, param: Tensor) -> AdamState:
        """No update yet, zero moments."""
        zeros = torch.zeros_like(param)
        return AdamState(0.0, zeros, zeros, zeros if self.amsgrad else None)

    def update(self, param: Tensor, grad: Tensor, state: AdamState) -> tuple[Tensor, AdamState]:
        """One step, in the order of operations of ``torch.optim.adam._single_tensor_adam``."""
        beta1, beta2 = self.betas
        step = state.step + 1
        if self.maximize:
            grad = -grad
        if self.weight_decay != 0:
            if self.decoupled_weight_decay:
                param = param * (1 - self.lr * self.weight_decay)
            else:
                grad = torch.add(grad, param, alpha=self.weight_decay)
        # Tensor hyperparameters keep their own precision in these scalars, as they do in the live optimizer.
        numbers = _Numbers(
            float(beta1),
            beta2,
            float(1 - beta2),
            float(self.lr / (1 - beta1**step)),
            float((1 - beta2**step) ** 0.5),
            self.eps,
        )
        param, *moments = _Descent.apply(numbers, param, grad, *state[1:])  # type: ignore[misc]
        return param, AdamState(step, *moments)


class _Numbers(NamedTuple):
    beta1: float
    beta2: Any
    one_minus_beta2: float
    step_size: float
    root_correction: float
    eps: float


class _Descent(torch.autograd.Function):
    """m ← β1 m + (1 - β1) g,  v ← β2 v + (1 - β2) g²,  θ ← θ - step_size · m / (√s / root_correction + eps).

    s is v, or with amsgrad the largest v so far. The derivative in closed form: autograd's own takes three times as
    many operator calls, which is a tenth of an inner step of a small net. √s has derivative 0 at 0, see ``rule.sqrt``.
    """

    @staticmethod
    def forward(
        ctx: Any, numbers: _Numbers, param: Tensor, grad: Tensor, m: Tensor, v: Tensor, largest: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        beta1, beta2, one_minus_beta2, step_size = numbers[:4]
        m = torch.lerp(m, grad, 1 - beta1)
        v = torch.addcmul(v * beta2, grad, grad, value=one_minus_beta2)
        s = v if largest is None else torch.maximum(largest, v)
        _, denominator = _root_and_denominator(s, numbers)
        ctx.numbers = numbers
        # Root and denominator are made again: three calls, for two vectors less in every stored step.
        ctx.save_for_backward(grad, m, v, largest)
        return torch.addcdiv(param, m, denominator, value=-step_size), m, v, None if largest is None else s

    @staticmethod
    def backward(ctx: Any, to_param: Tensor, to_m: Tensor, to_v: Tensor, to_s: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        if torch.is_grad_enabled():
            raise RuntimeError("This update is differentiated once; its derivative has no graph.")
        beta1, beta2, one_minus_beta2, step_size, root_correction, _ = ctx.numbers
        grad, m, v, largest = ctx.saved_tensors
        root, denominator = _root_and_denominator(v if largest is None else torch.maximum(largest, v), ctx.numbers)
        along = to_param / denominator
        to_m = torch.add(to_m, along, alpha=-step_size)
        slope = (along * m).mul_(step_size / (2 * root_correction)).div_(denominator * root)
        of_s = torch.where(root > 0, slope, root)
        to_largest = None
        if largest is None:
            to_v = to_v + of_s
        else:
            of_s = of_s + to_s
            # As torch.maximum has it, which gives each of two equal arguments a half.
            share = torch.heaviside(v - largest, v.new_tensor(0.5))
            to_v, to_largest = torch.addcmul(to_v, of_s, share), of_s * (1 - share)
        to_grad = torch.addcmul(to_m * (1 - beta1), to_v, grad, value=2 * one_minus_beta2)
        return None, to_param, to_grad, to_m * beta1, to_v * beta2, to_largest


def _root_and_denominator(s: Tensor, numbers: _Numbers) -> tuple[Tensor, Tensor]:
    root = s.sqrt()
    return root, (root / numbers.root_correction).add_(numbers.eps)


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay; since torch 2.7 the optimizer says so itself, before that by its class."""

    decoupled_weight_decay: bool = True
