"""Note everything mutable that some objects lead to, and restore it bit for bit.

Code that steps the user's own optimizer or runs the user's own loss to see what it does takes a snapshot first. Copies
would not do what the live objects do: an optimizer may depend on a parameter's attributes, class or identity, keep
tensors and counts on itself, and sit in a wrapper with a step of its own.
"""

import functools
import types
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..torch_private import put_versions, without_torch_function
from .belongings import PLAIN, class_attributes
from .restore import ABSENT, SavedTensor, cells_of, has_moved, put_back, refill, slots_of, source

ATOMS = PLAIN | {type, types.ModuleType}
# The packages whose objects are not looked into: logs, locks and positions in files are not restored.
_SHUT = (
    *("asyncio", "concurrent", "enum", "io", "logging", "multiprocessing", "queue", "socket", "subprocess"),
    *("threading", "torch._dynamo", "torch._inductor", "torch.distributed", "torch.fx", "torch.utils.data"),
)
_slots: WeakKeyDictionary[type, tuple[str, ...] | None] = WeakKeyDictionary()


class Snapshot:
    """Everything mutable that can be reached from some objects, as it is now.

    Containers keep their identity and get their content back; tensors keep theirs and get their memory, version, flags,
    ``.grad`` and attributes back. As a context manager, it restores everything at the end, whatever happens. Of the
    classes of instances it notes the attributes. Python's modules, open files, threads, iterators and data sets are not
    looked into.

    Args:
        roots: the optimizers, wrappers, modules and functions to start from.
        names: whether to follow the global names that functions use.
        bare: the ids of tensors whose values are not kept, because the caller writes them.
    """

    def __init__(self, roots: Iterable[Any], names: bool = False, bare: Collection[int] = ()) -> None:
        self._names = names
        self._bare = bare
        # Objects are kept alive, because another object may get the id of one that is gone.
        self._seen: dict[int, Any] = {}
        self._classes: set[type] = set()
        self._containers: list[tuple[Any, Any]] = []
        self._fields: list[tuple[Any, str, Any]] = []
        self._globals: list[tuple[dict[str, Any], str, Any]] = []
        # Sources of random numbers and numpy arrays, each with what restores it.
        self._states: list[tuple[Any, functools.partial[Any]]] = []
        self._tensors: list[SavedTensor] = []
        with without_torch_function(), torch.no_grad():
            todo = list(roots)
            while todo:
                one = todo.pop()
                if type(one) not in ATOMS and id(one) not in self._seen:
                    self._seen[id(one)] = one
                    self._visit(one, todo)

    def __enter__(self) -> "Snapshot":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.restore()
        except BaseException:
            # Begin again after Ctrl-C in the middle.
            self.restore()
            raise

    def restore(self) -> None:
        """Restore everything, as often as you like."""
        for container, before in self._containers:
            refill(container, before)
        for owner, name, before in self._fields:
            put_back(owner, name, before)
        for scope, name, before in self._globals:
            scope[name] = before
        for _, again in self._states:
            again()
        with without_torch_function(), torch.no_grad():
            for was in self._tensors:
                was.put_back()
            # The values that graphs have saved are back, so they may be used.
            changed = [w for w in self._tensors if w.version >= 0 and w.tensor._version != w.version]
            put_versions([w.tensor for w in changed], [w.version for w in changed])

    def objects(self) -> list[Any]:
        """Return all objects that the snapshot has seen."""
        return list(self._seen.values())

    def memories(self) -> list[Tensor]:
        """Return the memory to which ``restore`` would return tensors that lie elsewhere now."""
        strided = [was for was in self._tensors if was.memory.layout is torch.strided]
        return [was.memory for was in strided if was.memory.data_ptr() != was.tensor.data_ptr()]

    def changes(self) -> Iterator[str]:
        """Yield in words what is not as it was, tensors and their values apart."""
        for container, before in self._containers:
            items, now = (dict(c) if isinstance(c, dict) else dict(enumerate(c)) for c in (before, container))
            for key in dict.fromkeys([*items, *now]):
                if not _alike(items.get(key, ABSENT), now.get(key, ABSENT)):
                    yield f"{key!r} of a {type(container).__name__}"
        for owner, name, before in self._fields:
            if not _alike(before, getattr(owner, name, ABSENT)):
                yield f"{name} of a {type(owner).__name__}"
        for scope, name, before in self._globals:
            if not _alike(before, scope.get(name, ABSENT)):
                yield f"the global {name}"
        for one, again in self._states:
            if has_moved(one, again):
                yield f"a {type(one).__name__}"

    def let_go(self, others: "Snapshot") -> None:
        """Free the memory of the tensors whose values are not kept, except those that ``others`` has seen too."""
        for i, was in enumerate(self._tensors):
            if was.value is None and id(was.tensor) not in others._seen:
                was.tensor.data = nothing = was.alias.new_empty(0)
                self._tensors[i] = was._replace(alias=nothing, memory=nothing)

    def _visit(self, one: Any, todo: list[Any]) -> None:
        """Note the state of an object, and add what it leads to to the list."""
        if isinstance(one, Tensor):
            self._visit_tensor(one, todo)
        elif isinstance(one, dict):
            self._containers.append((one, dict(one)))
        elif isinstance(one, (list, set, deque, bytearray)):
            self._containers.append((one, list(one)))
        elif isinstance(one, types.FunctionType):
            self._visit_function(one, todo)
        elif state := source(one):
            self._states.append((one, state))
        elif slots := _slots_of(type(one)):
            self._fields += [(one, slot, getattr(one, slot, ABSENT)) for slot in slots]
        children = parts(one)
        if children is None:
            return
        todo += children
        self._visit_class(type(one), todo)
        attributes = getattr(one, "__dict__", None)
        if type(attributes) is dict:
            self._fields.append((one, "__dict__", attributes))

    def _visit_class(self, kind: type, todo: list[Any]) -> None:
        """Note what the instances of a user's own class share, such as a count."""
        for cls, name, value in class_attributes(kind, self._classes):
            if type(value) in ATOMS:
                self._fields.append((cls, name, value))
            elif isinstance(value, (dict, list, set, deque, Tensor)):
                todo.append(value)

    def _visit_tensor(self, tensor: Tensor, todo: list[Any]) -> None:
        was = SavedTensor.of(tensor, id(tensor) not in self._bare)
        self._tensors.append(was)
        todo.append(was.grad)
        if was.leaf and was.flag:
            self._fields.append((tensor, "_backward_hooks", tensor._backward_hooks))
            todo.append(tensor._backward_hooks)

    def _visit_function(self, function: types.FunctionType, todo: list[Any]) -> None:
        self._fields += [(cell, "cell_contents", content) for cell, content in cells_of(function)]
        scope = function.__globals__
        if self._names and not str(scope.get("__name__")).startswith("torch."):
            for name in _names_in(function.__code__) & scope.keys():
                self._globals.append((scope, name, scope[name]))
                todo.append(scope[name])


def _alike(before: Any, now: Any) -> bool:
    """Return whether a value is what it was; a tensor for another one counts as such, as its values do."""
    if before is now or (isinstance(before, Tensor) and isinstance(now, Tensor)):
        return True
    return type(before) is type(now) and type(now) in ATOMS and before == now


def parts(one: Any) -> list[Any] | None:
    """Return what an object leads to, in an order that its content decides; None if it is not looked into."""
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
        found = [*(content for _, content in cells_of(one)), one.__defaults__, one.__kwdefaults__]
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


def _names_in(code: types.CodeType) -> set[str]:
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return set(code.co_names).union(*map(_names_in, inner))


def _slots_of(kind: type) -> tuple[str, ...] | None:
    """Return the names of the slots of a class; None if its instances are not looked into."""
    if kind not in _slots:
        # A module is always the user's, even one that torch.compile or torch.fx has made.
        shut = not issubclass(kind, nn.Module) and any(_shut(cls.__module__) for cls in kind.__mro__)
        _slots[kind] = None if shut or issubclass(kind, type) else tuple(slots_of(kind))
    return _slots[kind]


def _shut(module: Any) -> bool:
    return any(f"{module}.".startswith(f"{name}.") for name in _SHUT)
