"""Note and restore a single thing: a tensor, a container, a field, a source of random numbers."""

import contextlib
import functools
import random
import sys
import types
from collections import OrderedDict, deque
from collections.abc import Callable
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..torch_private import has_overlapping_entries

ABSENT = object()


class SavedTensor(NamedTuple):
    """A tensor as it was: its memory, its values and its flags."""

    tensor: Tensor
    alias: Tensor
    memory: Tensor
    value: Tensor | None
    leaf: bool
    grad: Tensor | None
    flag: bool
    hooks: Any  # The container of its gradient hooks, or None, and what that holds.
    version: int

    @classmethod
    def of(cls, tensor: Tensor, valued: bool) -> "SavedTensor":
        """Note a tensor as it is now, with its values if ``valued``."""
        alias = memory = tensor.data
        if tensor.layout is torch.strided and not tensor.is_contiguous():
            # torch refuses a copy into an expanded tensor, but not into the whole of its memory.
            memory = alias.new_empty(0).set_(alias.untyped_storage()) if has_overlapping_entries(alias) else alias
        leaf, version = tensor.is_leaf, -1 if tensor.is_inference() else tensor._version
        grad = tensor.grad if leaf else None
        hooks = tensor._backward_hooks, dict(tensor._backward_hooks or {})
        value = memory.clone() if valued else None
        return cls(tensor, alias, memory, value, leaf, grad, tensor.requires_grad, hooks, version)

    def put_back(self) -> None:
        """Restore everything but the version."""
        tensor, alias = self.tensor, self.alias
        if tensor.layout is torch.strided:
            now = tensor.data
            if now.data_ptr() != alias.data_ptr() or now.shape != alias.shape or now.stride() != alias.stride():
                tensor.data = alias
        if self.value is not None:
            self.memory.copy_(self.value)
        if not self.leaf:
            return
        if not tensor.is_leaf:
            tensor.detach_()
        if tensor.requires_grad is not self.flag:
            tensor.requires_grad_(self.flag)
        if tensor.grad is not self.grad:
            tensor.grad = self.grad
        container, before = self.hooks
        if tensor._backward_hooks is not container or dict(container or {}) != before:
            if container is not None:
                refill(container, before)
            tensor._backward_hooks = container


def holds(container: Any, before: Any) -> bool:
    """Return whether a container holds the same objects as before, in the same order."""
    if len(container) != len(before) or not all(map(is_, container, before)):
        return False
    return not isinstance(container, dict) or all(map(is_, container.values(), before.values()))


def refill(container: Any, before: Any) -> None:
    """Restore the content of a container, unless it is unchanged."""
    if holds(container, before):
        return
    # Methods of the base classes are used, because those of a user's container may count, check or refuse.
    bases: Any = OrderedDict, dict, list, set, deque, bytearray
    base = next(c for c in bases if isinstance(container, c))
    base.clear(container)
    if isinstance(container, dict):
        for key, value in before.items():
            base.__setitem__(container, key, value)
    else:
        (base.update if base is set else base.extend)(container, before)


def put_back(owner: Any, name: str, before: Any) -> None:
    """Restore the value of an attribute."""
    if getattr(owner, name, ABSENT) is before:
        return
    kind = type if isinstance(owner, type) else object
    if before is ABSENT:
        kind.__delattr__(owner, name)
    else:
        kind.__setattr__(owner, name, before)


def slots_of(kind: type) -> list[str]:
    """Return the names of the slots of a class."""
    own = [vars(cls) for cls in kind.__mro__ if "__slots__" in vars(cls)]
    return [n for names in own for n, member in names.items() if isinstance(member, types.MemberDescriptorType)]


def cells_of(function: types.FunctionType) -> list[tuple[Any, Any]]:
    """Return the closure cells of a function with their contents, except those that are not bound yet."""
    found = []
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):
            found.append((cell, cell.cell_contents))
    return found


def source(one: Any) -> functools.partial[Any] | None:
    """Return what restores a source of random numbers or a numpy array when it is called; None for anything else."""
    found = _state(one)
    return None if found is None else functools.partial(found[0], found[1])


def contents(one: Any) -> Any:
    """Return what a source of random numbers or a numpy array holds, for comparison; None for anything else."""
    found = _state(one)
    return None if found is None else _comparable(found[1])


def has_moved(one: Any, restore: functools.partial[Any]) -> bool:
    """Return whether a source or an array holds something else than when ``source`` made ``restore``."""
    return bool(contents(one) != _comparable(restore.args[-1]))


def _comparable(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.numpy().tobytes()
    return (state.dtype, state.shape, state.tobytes()) if hasattr(state, "tobytes") else repr(state)


def _state(one: Any) -> tuple[Callable[[Any], Any], Any] | None:
    if isinstance(one, torch.Generator):
        return one.set_state, one.get_state()
    if isinstance(one, random.Random):
        return one.setstate, one.getstate()
    if (numpy := sys.modules.get("numpy")) is None:
        return None
    if isinstance(one, numpy.random.RandomState):
        return one.set_state, one.get_state()
    if isinstance(one, numpy.random.Generator):
        one = one.bit_generator
    if isinstance(one, numpy.random.BitGenerator):
        return functools.partial(setattr, one, "state"), one.state
    writeable = isinstance(one, numpy.ndarray) and one.flags.writeable
    return (functools.partial(numpy.copyto, one), one.copy()) if writeable else None
