"""A rule in closed form as two compiled functions of tensors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ..rules.block import Block
from ..rules.closed import ClosedRule, tensors_of


class Kernels(NamedTuple):
    """The rule's two functions, compiled.

    Attributes:
        descend: of the numbers as one tensor, and the tensors that ``ClosedRule.descend`` takes.
        ascend: the same.
        like: a tensor of the parameters' precision and device.
    """

    descend: Callable[..., Sequence[Tensor]]
    ascend: Callable[..., Sequence[Tensor]]
    like: Tensor


@dataclass(frozen=True)
class CompiledRule(ClosedRule):
    """The same rule, by way of kernels made for one with its switches."""

    rule: ClosedRule
    kernels: Kernels

    def numbers(self, state: Any) -> Tensor:
        """All of them."""
        return self.kernels.like.new_tensor([float(number) for number in self.rule.numbers(state)])

    def descend(self, numbers: Any, param: Tensor, grad: Tensor, *before: Tensor) -> tuple[Tensor, ...]:
        """One call."""
        return tuple(self.kernels.descend(numbers, param, grad, *before))

    def ascend(
        self,
        numbers: Any,
        param: Tensor,
        grad: Tensor,
        before: Sequence[Tensor],
        after: Sequence[Tensor],
        bars: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        """One call."""
        return tuple(self.kernels.ascend(numbers, param, grad, *before, *after, *bars))

    def following(self, state: Any, after: Sequence[Tensor]) -> Any:
        """As the rule has it."""
        return self.rule.following(state, after)


def kind(rule: ClosedRule, block: Block) -> Any:
    """Blocks of one kind have the same kernels."""
    tensors = tensors_of((block.params, *block.state))
    return type(rule), rule.switches(), tuple((t.shape, t.dtype, t.device) for t in tensors)


def compile_rule(rule: ClosedRule, block: Block) -> Kernels:
    """The kernels for a block of that rule's."""
    param = block.params
    before = tensors_of(block.state)
    n = len(before)
    given = rule.numbers(block.state)

    def named(numbers: Tensor) -> Any:
        return type(given)(*numbers.unbind())

    def descend(numbers: Tensor, param: Tensor, grad: Tensor, *before: Tensor) -> list[Tensor]:
        return list(rule.descend(named(numbers), param, grad, *before))

    def ascend(numbers: Tensor, param: Tensor, grad: Tensor, *rest: Tensor) -> list[Tensor]:
        return list(rule.ascend(named(numbers), param, grad, rest[:n], rest[n : 2 * n], rest[2 * n :]))

    with torch.no_grad():
        # To a tracer one tensor given twice is one argument.
        down = [param.new_empty(len(given)), *map(torch.empty_like, (param, param, *before))]
        up = [*down, *map(torch.empty_like, (*before, param, *before))]
        return Kernels(
            torch._inductor.compile(make_fx(descend)(*down), down),  # pyright: ignore[reportArgumentType]
            torch._inductor.compile(make_fx(ascend)(*up), up),  # pyright: ignore[reportArgumentType]
            param.new_empty(0),
        )
