"""An optimizer as a pure function: state in, state out.

A rule sees tensors, a gradient and a state, never a network. Written with ordinary differentiable operations, so
that the derivative of an update is autograd's, through the state too; or with a derivative in closed form beside it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

# From the cotangents of the new parameter and of the tensors in the new state, not all of which are None for zero, and
# the gradient itself, to the cotangent of the gradient, and those of the parameter and of the tensors in the old state.
Pullback = Callable[[Sequence[Tensor | None], Tensor], tuple[Tensor, Sequence[Tensor | None]]]


class UpdateRule:
    """What an unroll needs of an optimizer. A rule is a frozen dataclass with the optimizer's options as fields.

    Attributes:
        elementwise: each entry of a parameter moves by its own gradient and state alone. Such parameters are joined
            into one flat vector, which costs a dozen operator calls a step instead of a dozen for every tensor.
        joint: all parameters move together, in one call of ``update`` with all of them in one flat vector.
    """

    elementwise: ClassVar[bool] = True
    joint: ClassVar[bool] = False

    def init(self, param: Tensor) -> Any:
        """The state before the first update, a NamedTuple with the optimizer's own key names.

        Tensors have the shape of ``param`` where the rule is elementwise; a plain number (a step count) is a constant
        of the differentiation.
        """
        raise NotImplementedError

    def adopt(self, state: Any) -> Any:
        """The live optimizer's state, without what it holds from the time before an option was switched off."""
        return state

    def update(self, param: Tensor, grad: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The parameter and the state after one update; never writes to what it is given."""
        raise NotImplementedError

    def with_pullback(self, param: Tensor, grad: Tensor, state: Any) -> tuple[Tensor, Any, Pullback] | None:  # noqa: ARG002
        """``update`` without graph, and its derivative in closed form; None leaves that to autograd."""
        return None

    def for_used(self, used: list[bool]) -> "UpdateRule":
        """Of a joint rule: the one for a step in which only some parameters have a gradient."""
        raise NotImplementedError


@dataclass(frozen=True)
class Scalar:
    """A number that the optimizer keeps as a tensor of one element, in that tensor's precision.

    A constant of the differentiation: it depends on the number of updates alone.
    """

    tensor: Tensor

    @classmethod
    def of(cls, value: Any) -> "Scalar":
        """In the precision that torch chooses for such state."""
        wide = torch.get_default_dtype() == torch.float64
        return cls(torch.tensor(float(value), dtype=torch.float64 if wide else torch.float32))

    def store(self, value: Any) -> "Scalar":
        """Another value in the same precision."""
        return Scalar(torch.as_tensor(value).to(self.tensor))

    def times(self, factor: Any) -> "Scalar":
        """The product, rounded as the optimizer rounds it."""
        return Scalar(self.tensor * factor)

    def __float__(self) -> float:
        """The value."""
        return self.tensor.item()


class _Sqrt(torch.autograd.Function):
    """√x, whose derivative at 0 is 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        root = x.sqrt()
        ctx.save_for_backward(root)
        return root

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (root,) = ctx.saved_tensors
        # Not `root == 0`: nan stays nan.
        return torch.where(root > 0, grad / (root + root), root)


def sqrt(x: Tensor) -> Tensor:
    """√x with derivative 0 at 0, for second moments.

    A dead ReLU, a saturated hinge or a bias before BatchNorm gives v == 0, where √ has infinite slope and
    inf * 0 is nan. As a function of the gradient √v is even there, so 0 is its derivative.
    """
    return _Sqrt.apply(x)  # type: ignore[no-any-return]
