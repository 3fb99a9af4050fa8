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
    """The arguments of a loss, in which tensors of one run stand in for those of the user's that require grad."""

    batch: tuple[Any, ...]  # The positional arguments after D.
    kwargs: dict[str, Any]  # The keyword arguments.
    originals: list[Tensor]  # The user's tensors that require grad.
    leaves: list[Tensor]  # The leaves that stand in for ``originals``, in the same order.
    copies: list[Tensor]  # The copies of ``leaves`` that the loss gets.
    plain: list[Tensor]  # The user's tensors that do not require grad, unless the loss asks for it.
    rebuilt: list[tuple[Any, list[Any]]]  # The containers that hold stand-ins, each with its contents.

    def take_back(self) -> None:
        """Let the user's tensors not require grad, as a penalty may have asked them to."""
        for t in self.plain:
            if t.requires_grad:
                t.requires_grad_(False) if t.is_leaf else t.detach_()

    def check_unchanged(self, name: str) -> None:
        """Raise a ValueError if the loss of this name has written to what it got a copy of."""
        if changed := [t for t in self.copies if t._version]:
            raise changes_batch(changed[0], name)
        if written := [one for one, contents in self.rebuilt if not _same(_contents(one), contents)]:
            raise ValueError(
                f"{name} writes to a {type(written[0]).__name__} of the batch. Every run of a loss gets a copy of a "
                "container whose tensors require grad, so what it writes would be lost. Pass what changes in an "
                "argument of its own."
            )


def changes_batch(tensor: Tensor, name: str) -> ValueError:
    """Return the error for a loss that changes a tensor of the batch in place."""
    return ValueError(
        f"{name} changes a tensor of the batch in place, of shape {tuple(tensor.shape)}: it would do so in every inner "
        "step, and to your own tensor. Let it make a new one (real = real + noise), or begin with a copy "
        "(fake = fake.clone())."
    )


def cut(batch: tuple[Any, ...], kwargs: dict[str, Any], kept: Collection[int] = ()) -> Arguments:
    """Replace the tensors in ``batch`` and ``kwargs`` that require grad, also in containers, by fresh stand-ins.

    All else is passed on as it is, because a loss may know it by its identity, or write to it.

    Args:
        batch: the positional arguments of a loss after D.
        kwargs: its keyword arguments.
        kept: the ids of tensors that stay, because they are D's own and hold what D is at this step.
    """
    originals: list[Tensor] = []
    leaves: list[Tensor] = []
    copies: list[Tensor] = []
    plain: list[Tensor] = []
    # A tensor that occurs twice has one stand-in, because the loss may differentiate with respect to it.
    stand_in_of: dict[int, Tensor] = {}

    def made(tensor: Tensor) -> Tensor:
        # 16-bit tensors accumulate their gradient in 32 bits: a GradScaler's factor takes it out of float16's range.
        leaf = (tensor.detach().float() if tensor.itemsize == 2 else tensor.detach()).requires_grad_()
        setattr(leaf, MADE, True)
        originals.append(tensor)
        leaves.append(leaf)
        # The loss gets a copy, because D may start with an in-place operation, which autograd forbids on a leaf.
        copies.append(leaf.clone() if leaf.dtype is tensor.dtype else leaf.to(tensor.dtype))
        vars(copies[-1]).update(vars(tensor))
        return copies[-1]

    def stand_in(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or id(tensor) in kept:
            return tensor
        if not tensor.requires_grad:
            plain.append(tensor)
            return tensor
        if id(tensor) not in stand_in_of:
            stand_in_of[id(tensor)] = made(tensor)
        return stand_in_of[id(tensor)]

    new: list[Any] = []
    new_batch, new_kwargs = mapped(stand_in, batch, new), mapped(stand_in, kwargs, new)
    rebuilt = [(one, _contents(one)) for one in new if not isinstance(one, tuple) and one is not new_kwargs]
    return Arguments(new_batch, new_kwargs, originals, leaves, copies, plain, rebuilt)


def tensors_in(*values: Any) -> list[Tensor]:
    """Return every tensor in ``values``, also those in containers."""
    found: list[Tensor] = []
    mapped(found.append, values)
    return found


def distinct(objects: Iterable[_T]) -> list[_T]:
    """Return each object once, in the order of first occurrence."""
    return list({id(one): one for one in objects}.values())


def _contents(container: Any) -> list[Any]:
    return [one for pair in container.items() for one in pair] if isinstance(container, dict) else list(container)


def _same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


def mapped(function: Callable[[Tensor], Any], value: Any, made: list[Any] | None = None) -> Any:
    """Apply ``function`` to every tensor in ``value``, also in dicts, lists and tuples, and keep all other objects.

    A container in which nothing is replaced is kept too. The new ones are added to ``made``.
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, (tuple, list, deque)):
        before = list(enumerate(value))
    elif isinstance(value, dict):
        before = list(value.items())
    else:
        return value
    items = [(key, mapped(function, one, made)) for key, one in before]
    if all(now is one for (_, now), (_, one) in zip(items, before, strict=True)):
        return value
    new = _refilled(value, items)
    if made is not None and new is not value:
        made.append(new)
    return new


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
