"""Cut the graph at the tensors of the batch: every evaluation of a loss gets leaves of its own in their place.

One reverse sweep then yields the cotangent of the parameters and the gradient of ``fake`` together, and the generator's
graph is traversed once, in the backward pass of the result.
"""

import copy
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

_T = TypeVar("_T")

# The attribute that tells a leaf of one evaluation, wherever a loss may keep a graph that leads to it.
MADE = "_unroll_wrap_leaf"


class Arguments(NamedTuple):
    """The arguments of a loss, in which tensors of one evaluation stand in for the user's."""

    batch: tuple[Any, ...]  # The positional arguments after D.
    kwargs: dict[str, Any]  # The keyword arguments.
    originals: list[Tensor]  # The user's tensors that require grad.
    leaves: list[Tensor]  # The leaves that stand in for ``originals``, in the same order.
    aliases: list[Tensor]  # ``leaves`` and the stand-ins of tensors that do not require grad.


def cut(batch: tuple[Any, ...], kwargs: dict[str, Any], kept: Collection[int] = ()) -> Arguments:
    """Replace the floating-point tensors in ``batch`` and ``kwargs``, also in containers, by fresh stand-ins.

    Args:
        batch: the positional arguments of a loss after D.
        kwargs: its keyword arguments.
        kept: the ids of tensors that stay, because they are D's own and hold what D is at this step.
    """
    originals: list[Tensor] = []
    leaves: list[Tensor] = []
    aliases: list[Tensor] = []
    # A tensor that occurs twice has one stand-in, because the loss may differentiate with respect to it.
    stand_in_of: dict[int, Tensor] = {}

    def made(tensor: Tensor) -> Tensor:
        if not tensor.requires_grad:
            # A penalty may call real.requires_grad_(); the flag then lands here, not on the user's batch.
            aliases.append(tensor.detach())
            return aliases[-1]
        # 16-bit tensors accumulate their gradient in 32 bits: a GradScaler's factor takes it out of float16's range.
        leaf = (tensor.detach().float() if tensor.itemsize == 2 else tensor.detach()).requires_grad_()
        setattr(leaf, MADE, True)
        originals.append(tensor)
        leaves.append(leaf)
        # The loss gets a copy, because D may start with an in-place operation, which autograd forbids on a leaf.
        return leaf.clone() if leaf.dtype is tensor.dtype else leaf.to(tensor.dtype)

    def stand_in(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or id(tensor) in kept:
            return tensor
        if id(tensor) not in stand_in_of:
            stand_in_of[id(tensor)] = made(tensor)
        return stand_in_of[id(tensor)]

    new_batch, new_kwargs = mapped(stand_in, batch), mapped(stand_in, kwargs)
    return Arguments(new_batch, new_kwargs, originals, leaves, aliases + leaves)


def tensors_in(*values: Any) -> list[Tensor]:
    """Return every tensor in ``values``, also those in containers."""
    found: list[Tensor] = []
    mapped(found.append, values)
    return found


def distinct(objects: Iterable[_T]) -> list[_T]:
    """Return each object once, in the order of first occurrence."""
    return list({id(one): one for one in objects}.values())


def mapped(function: Callable[[Tensor], Any], value: Any) -> Any:
    """Apply ``function`` to every tensor in ``value``, also in dicts, lists and tuples, and keep all other objects."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, (tuple, list, deque)):
        return _refilled(value, [(i, mapped(function, v)) for i, v in enumerate(value)])
    if isinstance(value, dict):
        return _refilled(value, [(key, mapped(function, v)) for key, v in value.items()])
    return value


def _refilled(container: Any, items: list[tuple[Any, Any]]) -> Any:
    """A container of the same kind with other items.

    One that cannot be made anew, or not be written to, stays whole: its tensors are then found like those that a loss
    captures.
    """
    try:
        if isinstance(container, tuple):
            # A constructor of its own may take something else: that of a PackedSequence does.
            return getattr(type(container), "_make", type(container))([item for _, item in items])
        # The same: a defaultdict wants its factory first.
        new = copy.copy(container)
        for key, item in items:
            new[key] = item
    except Exception:  # noqa: BLE001
        return container
    return new
