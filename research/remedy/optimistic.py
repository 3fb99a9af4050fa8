"""Optimistic Adam (Daskalakis et al. 2018): every step is twice Adam's, less the step before.

The rule tells the library the same update as a function of tensors, which lets it unroll the optimizer at Adam's price.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unroll_wrap import UpdateRule, register_rule
from unroll_wrap.optimizers.rule import sqrt


class State(NamedTuple):
    """Of one parameter, under the names that the optimizer has for it."""

    step: float
    exp_avg: Tensor
    exp_avg_sq: Tensor
    last: Tensor


@dataclass(frozen=True)
class OptimisticRule(UpdateRule):
    """θ ← θ - 2 s_t + s_{t-1}, with -s_t the step of Adam."""

    lr: float
    betas: tuple[float, float]
    eps: float

    def init(self, param: Tensor) -> State:
        """Nothing has happened yet."""
        return State(0.0, *(torch.zeros_like(param) for _ in range(3)))

    def update(self, param: Tensor, grad: Tensor, state: State) -> tuple[Tensor, State]:
        """One update."""
        beta1, beta2 = self.betas
        step = state.step + 1
        mean = beta1 * state.exp_avg + (1 - beta1) * grad
        square = beta2 * state.exp_avg_sq + (1 - beta2) * grad * grad
        size = self.lr / (1 - beta1**step) * mean / (sqrt(square / (1 - beta2**step)) + self.eps)
        return param - 2 * size + state.last, State(step, mean, square, size)


class OptimisticAdam(torch.optim.Optimizer):
    """The optimizer of the loop, by the same rule."""

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, betas: tuple[float, float], eps: float = 1e-8
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            rule = OptimisticRule(group["lr"], group["betas"], group["eps"])
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = State(**self.state[parameter]) if self.state[parameter] else rule.init(parameter)
                    moved, state = rule.update(parameter, parameter.grad, state)
                    parameter.copy_(moved)
                    self.state[parameter].update(state._asdict())


register_rule(OptimisticAdam, OptimisticRule)
