"""Everything mutable behind some objects, as it is now, and put back bit for bit.

Whoever steps the user's own optimizer, or runs the user's own loss, to see what it does, takes a snapshot first. Copies
would not do what the live objects do: an optimizer may go by a parameter's attributes, class or identity, keep tensors
and counts on itself, and sit in a wrapper with a step of its own.
"""

import contextlib
import functools
import types
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..torch_private import without_torch_function
from .restore import ABSENT, Was, put_back, refill, set_versions, source

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type, types.ModuleType)
ATOMS = frozenset((*_PLAIN, torch.dtype, torch.device, torch.Size))
# Where classes come from whose instances are not looked into: a log, a lock, a position in a file is not turned back.
_SHUT = (
    *("asyncio", "concurrent", "enum", "io", "logging", "multiprocessing", "queue", "socket", "subprocess"),
    *("threading", "torch._dynamo", "torch._inductor", "torch.distributed", "torch.fx", "torch.utils.data"),
)
_slots: WeakKeyDictionary[type, tuple[str, ...] | None] = WeakKeyDictionary()


class Snapshot:
    """All that is mutable and can be reached from some objects, as it is now.

    Containers keep their identity and are refilled; tensors keep theirs, and their memory, version, flags, ``.grad``
    and attributes. As a context it puts everything back on leaving, whatever happens. Classes, Python's modules, open
    files, threads, iterators and data sets are not looked into.

    Args:
        roots: optimizers, wrappers, modules, functions.
        names: follow the global names that a function uses, too.
        bare: the ids of tensors whose values are not kept, because somebody else writes them.
    """

    def __init__(self, roots: Iterable[Any], names: bool = False, bare: Collection[int] = ()) -> None:
        self._names = names
        self._bare = bare
        # Kept alive: what comes and goes would lend its id to another.
        self._seen: dict[int, Any] = {}
        self._containers: list[tuple[Any, Any]] = []
        self._fields: list[tuple[Any, str, Any]] = []
        self._globals: list[tuple[dict[str, Any], str, Any]] = []
        self._states: list[Callable[[], Any]] = []
        self._tensors: list[Was] = []
        with without_torch_function(), torch.no_grad():
            todo = list(roots)
            while todo:
                one = todo.pop()
                if type(one) not in ATOMS and id(one) not in self._seen:
                    self._seen[id(one)] = one
                    self._visit(one, todo)

    def __enter__(self) -> "Snapshot":
        """The snapshot."""
        return self

    def __exit__(self, *_: object) -> None:
        """Put everything back."""
        try:
            self.restore()
        except BaseException:
            # Ctrl-C in the middle.
            self.restore()
            raise

    def restore(self) -> None:
        """Put everything back, as often as you like."""
        for container, before in self._containers:
            refill(container, before)
        for owner, name, before in self._fields:
            put_back(owner, name, before)
        for scope, name, before in self._globals:
            scope[name] = before
        for again in self._states:
            again()
        with without_torch_function(), torch.no_grad():
            for was in self._tensors:
                was.put_back()
            set_versions([w for w in self._tensors if w.version >= 0 and w.tensor._version != w.version])

    def objects(self) -> list[Any]:
        """All that it has seen."""
        return list(self._seen.values())

    def let_go(self, others: "Snapshot") -> None:
        """Of the tensors without values, keep no memory either, unless another snapshot has seen them, too."""
        for i, was in enumerate(self._tensors):
            if was.value is None and id(was.tensor) not in others._seen:
                was.tensor.data = nothing = was.alias.new_empty(0)
                self._tensors[i] = was._replace(alias=nothing, memory=nothing)

    def _visit(self, one: Any, todo: list[Any]) -> None:
        """Note what an object is like; what it leads to goes on the list."""
        if isinstance(one, Tensor):
            self._visit_tensor(one, todo)
        elif isinstance(one, dict):
            self._containers.append((one, dict(one)))
        elif isinstance(one, (list, set, deque, bytearray)):
            self._containers.append((one, list(one)))
        elif isinstance(one, types.FunctionType):
            self._visit_function(one, todo)
        elif state := source(one):
            self._states.append(state)
        elif slots := _slots_of(type(one)):
            self._fields += [(one, slot, getattr(one, slot, ABSENT)) for slot in slots]
        children = parts(one)
        if children is None:
            return
        todo += children
        attributes = getattr(one, "__dict__", None)
        if type(attributes) is dict:
            self._fields.append((one, "__dict__", attributes))

    def _visit_tensor(self, tensor: Tensor, todo: list[Any]) -> None:
        was = Was.of(tensor, id(tensor) not in self._bare)
        self._tensors.append(was)
        todo.append(was.grad)
        if was.leaf and was.flag:
            self._fields.append((tensor, "_backward_hooks", tensor._backward_hooks))
            todo.append(tensor._backward_hooks)

    def _visit_function(self, function: types.FunctionType, todo: list[Any]) -> None:
        self._fields += [(cell, "cell_contents", content) for cell, content in _cells(function)]
        scope = function.__globals__
        if self._names and not str(scope.get("__name__")).startswith("torch."):
            for name in _names_in(function.__code__) & scope.keys():
                self._globals.append((scope, name, scope[name]))
                todo.append(scope[name])


def parts(one: Any) -> list[Any] | None:
    """What an object leads to, in an order that its content alone decides; None where it is not looked into."""
    found: list[Any]
    if isinstance(one, dict):
        found = [x for item in one.items() for x in item]
    elif isinstance(one, (list, tuple, set, frozenset, deque, bytearray)):
        found = list(one)
    elif isinstance(one, types.BuiltinMethodType):
        found = [one.__self__]
    elif isinstance(one, types.MethodType):
        return [one.__self__, one.__func__]
    elif isinstance(one, types.FunctionType):
        if _shut(one.__globals__.get("__name__", "")):
            return None
        found = [*(content for _, content in _cells(one)), one.__defaults__, one.__kwdefaults__]
    elif isinstance(one, functools.partial):
        found = [one.func, one.args, one.keywords]
    elif isinstance(one, Tensor):
        found = []
    elif (slots := _slots_of(type(one))) is None:
        return None
    else:
        found = [getattr(one, slot, None) for slot in slots]
        if isinstance(one, torch.jit.ScriptModule):
            found += (*one.parameters(), *one.buffers())
    attributes = getattr(one, "__dict__", None)
    if type(attributes) is dict:
        found.append(attributes)
    return found


def _cells(function: types.FunctionType) -> list[tuple[Any, Any]]:
    """The variables that a function shares with others, but for those that are not bound yet."""
    found = []
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):
            found.append((cell, cell.cell_contents))
    return found


def _names_in(code: types.CodeType) -> set[str]:
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return set(code.co_names).union(*map(_names_in, inner))


def _slots_of(kind: type) -> tuple[str, ...] | None:
    """The names of the slots of a class; None where its instances are not looked into."""
    if kind not in _slots:
        # A module is always the user's, even one that torch.compile or torch.fx has made.
        shut = not issubclass(kind, nn.Module) and any(_shut(cls.__module__) for cls in kind.__mro__)
        own = [vars(cls) for cls in kind.__mro__ if "__slots__" in vars(cls)]
        found = [k for v in own for k, member in v.items() if isinstance(member, types.MemberDescriptorType)]
        _slots[kind] = None if shut or issubclass(kind, type) else tuple(found)
    return _slots[kind]


def _shut(module: Any) -> bool:
    return any(f"{module}.".startswith(f"{name}.") for name in _SHUT)
