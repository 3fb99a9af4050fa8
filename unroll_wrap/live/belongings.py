"""Find what modules keep besides parameters and buffers: counts, lists, the user's own objects, tensors in these.

A forward pass may change all of it. Containers are noted with their content, and tensors with their place.
"""

import functools
import threading
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .restore import ABSENT, cells_of, put_back, refill, slots_of, source

# The attributes that every module has, and that only torch writes to; and what Lightning, once imported, has
# torch.compile leave on each module: its arguments, such as a backend, which are no part of the module.
_OF_EVERY_MODULE = frozenset((*vars(nn.Module()), "_compile_kwargs"))
PLAIN = frozenset((bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size))
# Objects of these packages, such as trainers and loggers, are no part of the discriminator.
_FRAMEWORKS = frozenset(
    "_io _thread _weakref accelerate builtins concurrent functools ignite io itertools lightning lightning_fabric "
    "logging multiprocessing numpy pathlib pytorch_lightning re threading torch torchvision tqdm typing "
    "wandb weakref".split()
)
_DEEPEST = 6


class Place(NamedTuple):
    """A tensor and its place, ``container[key]``; the container is None if the place cannot take another tensor."""

    tensor: Tensor
    container: Any
    key: Any


class Belongings:
    """The tensors that modules keep besides their registered ones, and every container that may change.

    Args:
        modules: the modules to look into; a submodule has to be in the list itself.
        attributes: the attributes of their parameters.
    """

    def __init__(self, modules: Iterable[nn.Module], attributes: Iterable[dict[str, Any]] = ()) -> None:
        self.places: list[Place] = []  # The places of tensors, including parameters.
        self.containers: list[Any] = []  # The dicts, lists, deques, sets and bytearrays.
        self.objects: list[Any] = []  # The instances of the user's classes.
        # ``(object, name)`` for each slot of these objects, and for each variable of a closure.
        self.slots: list[tuple[Any, str]] = []
        self.modules: list[nn.Module] = []  # The modules that no module has registered, such as those in a list.
        self.sources: list[Callable[[], Any]] = []  # Functions that restore numpy arrays and sources of random numbers.
        self._seen: set[int] = set()
        self._classes: set[type] = set()
        for own in attributes:
            self._visit(own, None, None, 0)
        for module in modules:
            self._visit_class(type(module))
            for name, value in vars(module).items():
                if name not in _OF_EVERY_MODULE and type(value) not in PLAIN:
                    self._visit(value, vars(module), name, 0)
            for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
                self._visit(hook, None, None, 0)

    def contents(self) -> tuple[list[Any], list[Any]]:
        """Return what the containers and slots hold now."""
        slots = [getattr(one, slot, ABSENT) for one, slot in self.slots]
        return [dict(c) if isinstance(c, dict) else list(c) for c in self.containers], slots

    def refill(self, contents: tuple[list[Any], list[Any]]) -> None:
        """Restore what the containers and slots held."""
        for container, before in zip(self.containers, contents[0], strict=True):
            refill(container, before)
        for (one, slot), before in zip(self.slots, contents[1], strict=True):
            put_back(one, slot, before)

    def _visit(self, value: Any, container: Any, key: Any, depth: int) -> None:
        if isinstance(value, Tensor):
            self.places.append(Place(value, container, key))
        elif isinstance(value, nn.Module):
            self.modules.append(value)
        elif type(value) not in PLAIN and (restore := source(value)):
            self.sources.append(restore)
            return
        if isinstance(value, types.FunctionType) and id(value) not in self._seen:
            self._seen.add(id(value))
            self._visit_closure(value, depth + 1)
        if type(value) in PLAIN or isinstance(value, _OTHERS) or depth == _DEEPEST or id(value) in self._seen:
            return
        self._seen.add(id(value))
        depth += 1
        if isinstance(value, (dict, list, deque, set)) and type(own := getattr(value, "__dict__", None)) is dict:
            # An instance of a user's subclass of these has attributes too.
            self._visit(own, None, None, depth)
        if isinstance(value, dict):
            self.containers.append(value)
            for name, item in value.items():
                self._visit(item, value, name, depth)
        elif isinstance(value, (list, deque)):
            self.containers.append(value)
            for i, item in enumerate(value):
                self._visit(item, value, i, depth)
        elif isinstance(value, (set, frozenset, tuple)):
            if isinstance(value, set):
                self.containers.append(value)
            for item in value:
                self._visit(item, None, None, depth)
        elif isinstance(value, bytearray):
            self.containers.append(value)
        elif isinstance(value, types.MethodType):
            self._visit(value.__self__, None, None, depth)
        elif isinstance(value, functools.partial):
            self._visit([value.func, value.args, value.keywords], None, None, depth)
        elif isinstance(value, _OPEN) or type(value).__module__.startswith("torch.distributions."):
            self._visit(getattr(value, "__dict__", None), None, None, depth - 1)
        elif not _is_of_a_framework(type(value)):
            self.objects.append(value)
            self._visit_class(type(value))
            self._visit(getattr(value, "__dict__", None), None, None, depth - 1)
            for slot in slots_of(type(value)):
                self.slots.append((value, slot))
                self._visit(getattr(value, slot, None), None, None, depth)

    def _visit_class(self, kind: type) -> None:
        """Note the numbers, tensors and containers that instances of a user's own class share, such as a count."""
        for cls, name, value in class_attributes(kind, self._classes):
            if type(value) in PLAIN:
                self.slots.append((cls, name))
            elif type(value) in _SHARED:
                self._visit(value, None, None, 1)

    def _visit_closure(self, function: types.FunctionType, depth: int) -> None:
        """Note the numbers and tensors that a hook, or a replaced ``forward``, keeps in variables around it.

        What it collects in lists and dicts there is a log of the user's, and stays.
        """
        for cell, value in cells_of(function):
            if type(value) in PLAIN or isinstance(value, Tensor):
                self.slots.append((cell, "cell_contents"))
            if isinstance(value, (Tensor, types.FunctionType)):
                self._visit(value, None, None, depth)


def class_attributes(kind: type, seen: set[type]) -> Iterator[tuple[type, str, Any]]:
    """Yield ``(class, name, value)`` for what the user's own classes in a class's order hold, each class once."""
    for cls in kind.__mro__:
        if cls not in seen and not _is_of_a_framework(cls):
            seen.add(cls)
            yield from ((cls, name, value) for name, value in list(vars(cls).items()) if not name.startswith("__"))


def _is_of_a_framework(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in _FRAMEWORKS


# What these hold is in their ``__dict__``.
_OPEN = (threading.local, WeakKeyDictionary)
_SHARED = {dict, list, deque, set, Tensor}
_OTHERS = (Tensor, nn.Module, torch.optim.Optimizer, type, types.ModuleType, types.FunctionType)
