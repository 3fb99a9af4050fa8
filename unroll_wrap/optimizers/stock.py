"""Decide whether a live optimizer's ``step`` is the unchanged one of its class, so that the rule for it applies."""

import inspect
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch

from ..torch_private import has_global_step_hooks

# Libraries whose wrappers do not change what a step does.
HOSTS = ("accelerate", "ignite", "lightning", "lightning_fabric", "pytorch_lightning")


class _Known(NamedTuple):
    """The path of the rule for a class, or None, and the functions that this result depends on, by their names."""

    rule: str | None
    methods: Mapping[str, Any]  # Those of the class that its ``step`` uses.
    helpers: Mapping[str, Any]  # Those that these call in the file that defines ``step``.
    scope: Mapping[str, Any]  # The global names of that file.

    def holds(self, kind: type) -> bool:
        """Return whether none of these functions has been replaced since."""
        mine = all(getattr(kind, n, None) is f for n, f in self.methods.items())
        return mine and all(self.scope.get(n) is f for n, f in self.helpers.items())


# What has been found out about classes of optimizers. A rule that is registered later may change it.
KNOWN: WeakKeyDictionary[type, _Known] = WeakKeyDictionary()


def plain_rule(optimizer: Any, rules: Mapping[str, Any]) -> Any:
    """Return the rule for the optimizer; None if its ``step`` is not that of the class that the rule is for.

    A rule does not cover step hooks, or a step that was overridden, wrapped, or replaced on the class or the instance.
    Torch's own wrappers (schedulers, profilers, torch.compile) and those of known libraries change nothing.
    """
    kind = type(optimizer)
    known = KNOWN.get(kind)
    if known is None or not known.holds(kind):
        known = KNOWN[kind] = _looked_up(kind, rules)
    rule = known.rule and rules.get(known.rule)
    if rule is None or has_global_step_hooks():
        return None
    own = vars(optimizer)
    if own.get("_optimizer_step_pre_hooks") or own.get("_optimizer_step_post_hooks"):
        return None
    for name, value in own.items():
        wrapped = name == "step" and _end(value) is _end(kind.step) and _is_ours(value, kind)
        if callable(known.methods.get(name)) and not wrapped:
            return None
    return rule


def _looked_up(kind: type, rules: Mapping[str, Any]) -> _Known:
    """Find the rule for a class, which applies if all methods that ``step`` uses are those of the rule's own class."""
    home = next((cls for cls in kind.__mro__ if path(cls) in rules), None)
    if home is None:
        return _Known(None, {}, {}, {})
    names = _called(home)
    # A class may inherit its step from another file, as AdamW does.
    scope = getattr(_end(getattr(home, "step", None)), "__globals__", {})
    helpers = _helpers([getattr(home, name, None) for name in names], scope)
    methods = {n: getattr(kind, n, None) for n in names}
    # With its first instance torch wraps the step in the instance's class, even if that inherits the step.
    untouched = all(
        _end(inspect.getattr_static(kind, n, None)) is _end(inspect.getattr_static(home, n, None)) for n in names
    )
    # Helpers are checked for torch's classes only, because another library's may come from any of its files.
    checked = [*methods.values(), *(helpers.values() if _root(home.__module__) == "torch" else ())]
    allowed = all(_is_ours(f, home) for f in checked if callable(f))
    return _Known(path(home) if untouched and allowed else None, methods, helpers, scope)


def _helpers(methods: Iterable[Any], scope: Mapping[str, Any]) -> dict[str, Any]:
    """Return the functions in the scope of a file that a class's methods call, directly or through one another."""
    found: dict[str, Any] = {}
    todo = list(methods)
    while todo:
        for function in _chain(todo.pop()):
            for name in function.__code__.co_names:
                helper = scope.get(name)
                known = name in found or _root(getattr(helper, "__module__", "")) in sys.stdlib_module_names
                if isinstance(helper, types.FunctionType) and not known:
                    found[name] = helper
                    todo.append(helper)
    return found


def _called(home: Any) -> set[str]:
    """Return the names of the methods that a class's ``step`` may use, directly or through one another."""
    found: set[str] = set()
    todo = ["step"]
    while todo:
        name = todo.pop()
        found.add(name)
        for function in _chain(getattr(home, name, None)):
            names = function.__code__.co_names
            todo += [n for n in names if n not in found and isinstance(getattr(home, n, None), types.FunctionType)]
    # A subclass may replace these attributes by properties.
    return found | {"param_groups", "state"}


def _chain(step: Any) -> Iterator[types.FunctionType]:
    """Yield a function, the function that it wraps, and so on."""
    while step is not None:
        step = getattr(step, "__func__", step)
        if not isinstance(step, types.FunctionType):
            return
        yield step
        step = getattr(step, "__wrapped__", None)


def _end(function: Any) -> Any:
    """Return the innermost function that a function wraps, or what else is given."""
    return next(reversed(list(_chain(function))), function)


def _is_ours(function: Any, home: type) -> bool:
    """Return whether all wrappers of a function come from torch, a known library, or the file of the class itself."""
    modules = [f.__globals__.get("__name__", "") for f in _chain(function)]
    return bool(modules) and all(m == home.__module__ or _root(m) in ("torch", *HOSTS) for m in modules)


def is_hosted(wrapper: Any) -> bool:
    """Return whether ``step`` comes from a known library or from torch, and steps the ``.optimizer`` inside."""
    step = getattr(wrapper, "step", None)
    if getattr(step, "__self__", wrapper) is not wrapper:
        return False  # __getattr__ has found it on another object.
    roots = {_root(f.__globals__.get("__name__", "")) for f in _chain(step)}
    of_a_library = bool(roots) and roots <= {"torch", *HOSTS}
    return of_a_library and not (roots == {"torch"} and isinstance(wrapper, torch.optim.Optimizer))


def _root(module: str) -> str:
    return module.split(".")[0]


def path(kind: type) -> str:
    """Return the full name of a class, with its module."""
    return f"{kind.__module__}.{kind.__qualname__}"
