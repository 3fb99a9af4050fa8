"""Rules with a derivative in closed form; autograd would take three times as many operator calls."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .rule import Pullback, UpdateRule


class ClosedRule(UpdateRule):
    """A rule that defines its update, ``descend``, and the pullback of that, ``ascend``."""

    def numbers(self, state: Any) -> Any:
        """Return the numbers that the next update computes with, such as the learning rate and bias corrections."""
        raise NotImplementedError

    def descend(self, numbers: Any, param: Tensor, grad: Tensor, *before: Tensor) -> tuple[Tensor, ...]:
        """Return the new parameter and the tensors of the new state.

        ``numbers`` is what the method of this name returns; for a compiler, each is a tensor without dimensions.
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
        """Pull the cotangents ``bars`` of what ``descend`` returned back to ``grad``, ``param`` and ``before``."""
        raise NotImplementedError

    def switches(self) -> tuple[bool, ...]:
        """Return the options that decide which operations ``descend`` performs."""
        raise NotImplementedError

    def following(self, state: Any, after: Sequence[Tensor]) -> Any:
        """Return the state after an update, with the tensors ``after``."""
        raise NotImplementedError

    def update(self, param: Tensor, grad: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Return the parameter and the state after one update, whose graph is a single node."""
        new, *after = _Descent.apply(self, self.numbers(state), param, grad, *tensors_of(state))  # type: ignore[misc]
        return new, self.following(state, after)

    def with_pullback(self, param: Tensor, grad: Tensor, state: Any) -> tuple[Tensor, Any, Pullback]:
        """Return the parameter and the state after one update, without graph, and the pullback of the update."""
        numbers, before = self.numbers(state), tensors_of(state)
        new, *after = self.descend(numbers, param, grad, *before)

        # g is an argument and not kept, because it is a copy of gradients that are kept with their graph already.
        def back(cotangent: Sequence[Tensor | None], grad: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
            bars = [torch.zeros_like(param) if bar is None else bar for bar in cotangent]
            of_grad, *of_old = self.ascend(numbers, param, grad, before, after, bars)
            return of_grad, of_old

        return new, self.following(state, after), back


class _Descent(torch.autograd.Function):
    """``descend`` as an autograd function, which can be differentiated once."""

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
    """Return the entries of a state that are tensors; the others are numbers."""
    return [t for t in state if isinstance(t, Tensor)]


def plus_scaled(a: Tensor, b: Tensor, times: Any) -> Tensor:
    """Return a + times · b, where ``times`` is a number or a tensor."""
    return a + times * b if isinstance(times, Tensor) else torch.add(a, b, alpha=times)


def plus_product(a: Tensor, b: Tensor, c: Tensor, times: Any) -> Tensor:
    """Return a + times · b · c, where ``times`` is a number or a tensor."""
    return a + times * b * c if isinstance(times, Tensor) else torch.addcmul(a, b, c, value=times)


def plus_quotient(a: Tensor, b: Tensor, c: Tensor, times: Any) -> Tensor:
    """Return a + times · b / c, where ``times`` is a number or a tensor."""
    return a + times * b / c if isinstance(times, Tensor) else torch.addcdiv(a, b, c, value=times)
