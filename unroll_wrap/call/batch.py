"""The tensors of a batch as cut points: each evaluation of a loss gets leaves of its own.

One sweep then yields the cotangent of the parameters and the gradient of ``fake`` together, and the generator's graph
is entered once, by the gradients that the result hands over.
"""

import copy
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import Tensor


class Arguments(NamedTuple):
    """A loss's arguments, and what stands in for what.

    Attributes:
        batch: positional arguments.
        kwargs: keyword arguments.
        originals: the user's tensors that require grad.
        leaves: their stand-ins, in the same order.
        aliases: every stand-in leaf, those of tensors without grad included.
    """

    batch: tuple[Any, ...]
    kwargs: dict[str, Any]
    originals: list[Tensor]
    leaves: list[Tensor]
    aliases: list[Tensor]


def cut(batch: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """Fresh stand-ins for the floating-point tensors in ``batch`` and ``kwargs``, containers included."""
    originals: list[Tensor] = []
    leaves: list[Tensor] = []
    aliases: list[Tensor] = []
    # A tensor that comes twice is one tensor to the loss too, which may differentiate by it.
    stand_in_of: dict[int, Tensor] = {}

    def made(tensor: Tensor) -> Tensor:
        if not tensor.requires_grad:
            # A penalty may call real.requires_grad_(); the flag then lands here, not on the user's batch.
            aliases.append(tensor.detach())
            return aliases[-1]
        # Of 16 bits the gradient is summed in 32: a GradScaler multiplies it by more than float16 can hold.
        leaf = (tensor.detach().float() if tensor.itemsize == 2 else tensor.detach()).requires_grad_()
        originals.append(tensor)
        leaves.append(leaf)
        # A copy: D may start with an in-place operation, which a leaf would refuse.
        return leaf.clone() if leaf.dtype is tensor.dtype else leaf.to(tensor.dtype)

    def stand_in(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        if id(tensor) not in stand_in_of:
            stand_in_of[id(tensor)] = made(tensor)
        return stand_in_of[id(tensor)]

    new_batch, new_kwargs = mapped(stand_in, batch), mapped(stand_in, kwargs)
    return Arguments(new_batch, new_kwargs, originals, leaves, aliases + leaves)


def tensors_in(*values: Any) -> list[Tensor]:
    """Every tensor in some arguments, containers included."""
    found: list[Tensor] = []
    mapped(found.append, values)
    return found


def distinct(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Each tensor once, in the order in which it first comes."""
    return list({id(t): t for t in tensors}.values())


def mapped(function: Callable[[Tensor], Any], value: Any) -> Any:
    """``value`` with ``function`` applied to its tensors, in dicts, lists and tuples too; other objects stay whole."""
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
