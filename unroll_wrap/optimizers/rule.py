"""``UpdateRule``: an optimizer as a pure function of a parameter, a gradient and a state.

A rule never sees a network. It is written with ordinary differentiable operations, so that autograd can differentiate
an update, through the state too; or it has a derivative in closed form as well.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

# Maps the cotangents of the new parameter and of the tensors in the new state, and the gradient, to the cotangent of
# the gradient, and those of the parameter and of the tensors in the old state. None is zero; not all inputs are None.
Pullback = Callable[[Sequence[Tensor | None], Tensor], tuple[Tensor, Sequence[Tensor | None]]]


class UpdateRule:
    """(θ, g, state) → (θ', state'): one update, as a frozen dataclass with the optimizer's options as fields.

    Attributes:
        elementwise: whether each entry of a parameter moves by its own gradient and state alone. Such parameters are
            joined into one flat vector: a dozen operator calls a step, instead of a dozen for every tensor.
        joint: whether all parameters move together, in one call of ``update`` with all of them in one flat vector.

    Examples:
        >>> import dataclasses, typing
        >>> State = typing.NamedTuple("State", [])
        >>> @dataclasses.dataclass(frozen=True)
        ... class Descent(unroll_wrap.UpdateRule):
        ...     lr: float
        ...     def init(self, param):
        ...         return State()
        ...     def update(self, param, grad, state):
        ...         return param - self.lr * grad, state
        >>> Descent(lr=0.5).update(torch.ones(2), torch.ones(2), State())
        (tensor([0.5000, 0.5000]), State())
    """

    elementwise: ClassVar[bool] = True
    joint: ClassVar[bool] = False

    def init(self, param: Tensor) -> Any:
        """Return the state before the first update, a NamedTuple with the optimizer's own key names.

        The tensors of an elementwise rule have the shape of ``param``. A plain number, such as a step count, is a
        constant of the differentiation.
        """
        raise NotImplementedError

    def adopt(self, state: Any) -> Any:
        """Return the live optimizer's state, without what is left from before an option was switched off."""
        return state

    def update(self, param: Tensor, grad: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Return the parameter and the state after one update, without writing to the arguments."""
        raise NotImplementedError

    def with_pullback(self, param: Tensor, grad: Tensor, state: Any) -> tuple[Tensor, Any, Pullback] | None:  # noqa: ARG002
        """Return ``update`` without graph, and its pullback in closed form; or None to leave that to autograd."""
        return None

    def for_used(self, used: list[bool]) -> "UpdateRule":
        """Return the joint rule for a step in which only the ``used`` parameters have a gradient."""
        raise NotImplementedError


def decayed(rule: Any, param: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return θ and g after ``maximize`` and weight decay, which joins g or, if it is decoupled, shrinks θ itself."""
    if rule.maximize:
        grad = -grad
    if rule.weight_decay != 0:
        if getattr(rule, "decoupled_weight_decay", False):
            param = param * (1 - rule.lr * rule.weight_decay)
        else:
            grad = torch.add(grad, param, alpha=rule.weight_decay)
    return param, grad


@dataclass(frozen=True)
class Scalar:
    """A number that the optimizer keeps in a tensor, in its precision: a constant of the differentiation."""

    tensor: Tensor

    @classmethod
    def of(cls, value: Any) -> "Scalar":
        """Return a value in the precision that torch chooses for such state."""
        wide = torch.get_default_dtype() == torch.float64
        return cls(torch.tensor(float(value), dtype=torch.float64 if wide else torch.float32))

    def store(self, value: Any) -> "Scalar":
        """Return another value in the same precision."""
        return Scalar(torch.as_tensor(value).to(self.tensor))

    def times(self, factor: Any) -> "Scalar":
        """Return the product with a number, rounded as the optimizer rounds it."""
        return Scalar(self.tensor * factor)

    def __float__(self) -> float:
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
    """Return √x with derivative 0 at 0, for second moments.

    A dead ReLU, a saturated hinge or a bias before BatchNorm gives v == 0, where √ has infinite slope, and inf * 0 is
    nan. As a function of the gradient √v is even, so 0 is the right derivative there.
    """
    return _Sqrt.apply(x)  # type: ignore[no-any-return]
