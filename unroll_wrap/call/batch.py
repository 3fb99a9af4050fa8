"""Cut the graph at the tensors of the batch: every evaluation of a loss gets leaves of its own in their place.

One reverse sweep then yields the cotangent of the parameters and the gradient of ``fake`` together, and the generator's
graph is traversed once, in the backward pass of the result.
"""

import copy
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from .borrowed import Borrowed, changes_batch, have_changed
from .runs import Run, mark

_T = TypeVar("_T")


class Arguments(NamedTuple):
    """The arguments of a loss, in which tensors of one run stand in for those of the user's that require grad."""

    batch: tuple[Any, ...]  # The positional arguments after D.
    kwargs: dict[str, Any]  # The keyword arguments.
    originals: list[Tensor]  # The user's tensors that require grad.
    leaves: list[Tensor]  # The leaves that stand in for ``originals``, in the same order.
    given: list[tuple[Tensor, int, dict[str, Any]]]  # The stand-ins that the loss gets, their versions and attributes.
    plain: list[Tensor]  # The tensors that require no grad, unless the loss asks for it.
    rebuilt: list[tuple[Any, dict[Any, Any]]]  # The containers that hold stand-ins, each with its contents.

    def check_copies(self, name: str, values: bool) -> None:
        """Raise a ValueError if a loss has written to what it got a copy of, by ``fake.data`` too if ``values``."""
        changed = [t for t, version, _ in self.given if t._version != version]
        if values:
            pairs = zip(self.leaves, self.given, strict=True)
            changed += [t for leaf, (t, *_) in pairs if t is not leaf and have_changed(leaf, t)]
        if changed:
            raise changes_batch(changed[0], name)
        written = [t for t, _, attributes in self.given if not _same(vars(t), attributes)]
        written += [one for one, contents in self.rebuilt if not _same(_contents(one), contents)]
        if written:
            raise ValueError(
                f"{name} writes to a {type(written[0]).__name__} of the batch. Every run of a loss gets copies of the "
                "tensors that require grad and of the containers that hold them, so what it writes would be lost. Pass "
                "what changes in an argument of its own."
            )


def cut(
    batch: tuple[Any, ...], kwargs: dict[str, Any], borrowed: Borrowed, run: Run, kept: Collection[int] = ()
) -> Arguments:
    """Replace the tensors in ``batch`` and ``kwargs`` that require grad, also in containers, by fresh stand-ins.

    All else is passed on as it is, because a loss may know it by its identity, or write to it, except views: a write
    with a graph to one could not be undone.

    Args:
        batch: the positional arguments of a loss after D.
        kwargs: its keyword arguments.
        borrowed: notes the tensors that are passed on.
        run: the run that the leaves are made for.
        kept: the ids of tensors that stay, because they are D's own and hold what D is at this step.
    """
    originals: list[Tensor] = []
    leaves: list[Tensor] = []
    given: list[tuple[Tensor, int, dict[str, Any]]] = []
    plain: list[Tensor] = []
    # A tensor that occurs twice has one stand-in, because the loss may differentiate with respect to it.
    stand_in_of: dict[int, Tensor] = {}

    def made(tensor: Tensor) -> Tensor:
        # 16-bit tensors accumulate their gradient in 32 bits: a GradScaler's factor takes it out of float16's range.
        leaf = (tensor.detach().float() if tensor.itemsize == 2 else tensor.detach()).requires_grad_()
        originals.append(tensor)
        leaves.append(leaf)
        stand_in = leaf
        if leaf.dtype is not tensor.dtype:
            stand_in = leaf.to(tensor.dtype)
        elif not tensor.is_leaf:
            # D may start with an in-place operation, which autograd forbids on a leaf.
            stand_in = leaf.clone()
        vars(stand_in).update(vars(tensor))
        mark(leaf, run)
        given.append((stand_in, stand_in._version, dict(vars(stand_in))))
        return stand_in

    def stand_in(tensor: Tensor) -> Tensor:
        if id(tensor) in kept or not (tensor.is_floating_point() or tensor.is_complex()):
            return tensor
        if tensor in borrowed:
            plain.append(tensor)
        elif not (tensor.requires_grad or tensor._is_view()):
            borrowed.borrow(tensor)
            plain.append(tensor)
        elif id(tensor) not in stand_in_of and not tensor.requires_grad:
            stand_in_of[id(tensor)] = alias = tensor.detach()
            vars(alias).update(vars(tensor))
            plain.append(alias)
        elif id(tensor) not in stand_in_of and tensor.is_floating_point():
            stand_in_of[id(tensor)] = made(tensor)
        return stand_in_of.get(id(tensor), tensor)

    new: list[Any] = []
    new_batch, new_kwargs = mapped(stand_in, batch, new), mapped(stand_in, kwargs, new)
    rebuilt = [(one, _contents(one)) for one in new if not isinstance(one, tuple) and one is not new_kwargs]
    return Arguments(new_batch, new_kwargs, originals, leaves, given, plain, rebuilt)


def tensors_in(*values: Any) -> list[Tensor]:
    """Return every tensor in ``values``, also those in containers."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    mapped(note, values)
    return found


def distinct(objects: Iterable[_T]) -> list[_T]:
    """Return each object once, in the order of first occurrence."""
    return list({id(one): one for one in objects}.values())


def _contents(container: Any) -> dict[Any, Any]:
    items = container if isinstance(container, dict) else enumerate(container)
    return {**dict(items), **{("attribute", name): value for name, value in getattr(container, "__dict__", {}).items()}}


def _same(one: Mapping[Any, Any], other: Mapping[Any, Any]) -> bool:
    return one.keys() == other.keys() and all(one[key] is other[key] for key in other)


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
