"""Rules whose derivative is written down, instead of found by autograd in three times as many operator calls."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .rule import Pullback, UpdateRule


class ClosedRule(UpdateRule):
    """An update as a function of tensors and of numbers, and its pullback as another."""

    def numbers(self, state: Any) -> Any:
        """What the next update computes with, beside tensors: its learning rate, its bias corrections."""
        raise NotImplementedError

    def descend(self, numbers: Any, param: Tensor, grad: Tensor, *before: Tensor) -> tuple[Tensor, ...]:
        """The new parameter, and the tensors of the new state.

        Args:
            numbers: from ``numbers``; or each of them as a tensor of no dimension, for a compiler.
            param: the parameter.
            grad: its gradient.
            *before: the tensors of the state.
        """
        raise NotImplementedError

    def ascend(
        self,
        numbers: Any,
        param: Tensor,
        grad: Tensor,
        before: Sequence[Tensor],
        after: Sequence[Tensor],
        bars: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        """From the cotangents ``bars`` of what ``descend`` returns to those of ``grad``, ``param`` and ``before``."""
        raise NotImplementedError

    def switches(self) -> tuple[bool, ...]:
        """What makes ``descend`` another function, beside the numbers."""
        raise NotImplementedError

    def following(self, state: Any, after: Sequence[Tensor]) -> Any:
        """The state after an update, with these tensors."""
        raise NotImplementedError

    def update(self, param: Tensor, grad: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The parameter and the state after one update; its graph is one node."""
        new, *after = _Descent.apply(self, self.numbers(state), param, grad, *tensors_of(state))  # type: ignore[misc]
        return new, self.following(state, after)

    def with_pullback(self, param: Tensor, grad: Tensor, state: Any) -> tuple[Tensor, Any, Pullback]:
        """The same without graph."""
        numbers, before = self.numbers(state), tensors_of(state)
        new, *after = self.descend(numbers, param, grad, *before)

        # Given g, not holding it: it is a second copy of gradients that their graph keeps.
        def back(cotangent: Sequence[Tensor | None], grad: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
            bars = [torch.zeros_like(param) if bar is None else bar for bar in cotangent]
            of_grad, *of_old = self.ascend(numbers, param, grad, before, after, bars)
            return of_grad, of_old

        return new, self.following(state, after), back


class _Descent(torch.autograd.Function):
    """``descend`` for autograd, once differentiable."""

    @staticmethod
    def forward(ctx: Any, rule: ClosedRule, numbers: Any, param: Tensor, grad: Tensor, *before: Tensor) -> Any:
        new = rule.descend(numbers, param, grad, *before)
        ctx.rule, ctx.numbers = rule, numbers
        ctx.save_for_backward(param, grad, *before, *new[1:])
        return new

    @staticmethod
    def backward(ctx: Any, *bars: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("This update is differentiated once; its derivative has no graph.")
        param, grad, *state = ctx.saved_tensors
        n = len(state) // 2
        of_grad, of_param, *of_before = ctx.rule.ascend(ctx.numbers, param, grad, state[:n], state[n:], bars)
        return None, None, of_param, of_grad, *of_before


def tensors_of(state: Any) -> list[Tensor]:
    """What of it is a tensor; the rest are numbers."""
    return [t for t in state if isinstance(t, Tensor)]


def plus(a: Tensor, b: Tensor, times: Any) -> Tensor:
    """The sum a + times · b, where ``times`` is a number or a tensor."""
    return a + times * b if isinstance(times, Tensor) else torch.add(a, b, alpha=times)


def plus_product(a: Tensor, b: Tensor, c: Tensor, times: Any) -> Tensor:
    """The sum a + times · b · c."""
    return a + times * b * c if isinstance(times, Tensor) else torch.addcmul(a, b, c, value=times)


def plus_quotient(a: Tensor, b: Tensor, c: Tensor, times: Any) -> Tensor:
    """The sum a + times · b / c."""
    return a + times * b / c if isinstance(times, Tensor) else torch.addcdiv(a, b, c, value=times)
