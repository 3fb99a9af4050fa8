"""Let torch's functions see an unroll's tensors in the place of the user's, where the two cannot exchange contents.

A profiler that records shapes or stacks keeps weak references to the contents of tensors, and torch does not exchange
what has any. Then the user's tensor objects get a class for the time a loss runs, whose ``__torch_function__`` hands
on the unroll's tensor in their place. This is slower than an exchange, and exact to the last bit too.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, partial
from itertools import repeat
from types import new_class
from typing import Any

from torch import Tensor
from torch.autograd import Function

from ..live.settings import Setting
from ..live.undo import Undo
from ..torch_private import past_torch_function

_tensor_for: dict[int, Tensor] = {}
_data: Any = Tensor.data


class _StandsIn:
    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        asked: dict[int, Tensor] = {}
        out = func(*_handed_on(args, asked), **_handed_on(kwargs or {}, asked))
        # What works in place returns the object that it was asked of.
        return _returned(out, asked)


@cache
def _standing(kind: type) -> type:
    return new_class(kind.__name__, (_StandsIn, kind), exec_body=lambda own: own.update(__module__=kind.__module__))


def _kind_of(tensor: Tensor) -> type:
    """Return the class of a tensor, which it has again when nothing stands in for it."""
    kind = type(tensor)
    return kind.__bases__[1] if issubclass(kind, _StandsIn) else kind


def _handed_on(value: Any, asked: dict[int, Tensor]) -> Any:
    kind = type(value)
    if issubclass(kind, _StandsIn):
        if (tensor := _tensor_for.get(id(value))) is None:
            # A copy that a loss has made.
            value.__class__ = _kind_of(value)
            return value
        asked[id(tensor)] = value
        return tensor
    if kind in (tuple, list):
        return kind([_handed_on(one, asked) for one in value])
    return {key: _handed_on(one, asked) for key, one in value.items()} if kind is dict else value


def _returned(out: Any, asked: Mapping[int, Tensor]) -> Any:
    if type(out) in (tuple, list):
        return type(out)([_returned(one, asked) for one in out])
    return asked.get(id(out), out)


def _translating(apply: Any) -> Any:
    def translated(cls: type, *args: Any, **kwargs: Any) -> Any:
        return apply.__get__(None, cls)(*_handed_on(args, {}), **_handed_on(kwargs, {}))

    return classmethod(translated)


# The user's autograd functions are called past ``__torch_function__``.
_functions_translate = Setting(lambda: vars(Function)["apply"], partial(setattr, Function, "apply"), _translating)


def _set_data(tensors: Iterable[Tensor], data: Iterable[Tensor]) -> None:
    # ``deque`` and ``map`` run in C, so no interrupt comes between two of them.
    deque(map(past_torch_function, repeat(_data.__set__), repeat(()), zip(tensors, data, strict=True)), 0)


class StandIns:
    """Tensors of an unroll that stand in for the user's own."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors
        # The contents of the user's tensors, by the id of the object.
        self.contents = {id(t): past_torch_function(_data.__get__, (), (t,)) for t in tensors}
        self._undo = Undo()

    def put(self, mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
        """Let tensors stand in for those of the user's, with the class and the attributes of these."""
        _functions_translate.hold(self._undo)
        for user, tensor in zip(mine, theirs, strict=True):
            tensor.__class__ = type(user)  # pyright: ignore[reportAttributeAccessIssue]
            vars(tensor).update(vars(user))
        _tensor_for.update(zip(map(id, mine), theirs, strict=True))
        # What reads a tensor past torch's functions, as code in C++ does, finds the right values all the same.
        _set_data(mine, [past_torch_function(_data.__get__, (), (t,)) for t in theirs])
        deque(map(setattr, mine, repeat("__class__"), [_standing(type(t)) for t in mine]), 0)

    def leave(self) -> None:
        """Let the user's tensors be themselves again, as often as you like."""
        for t in self._tensors:
            if isinstance(t, _StandsIn):
                t.__class__ = _kind_of(t)  # pyright: ignore[reportAttributeAccessIssue]
        _set_data(self._tensors, self.contents.values())
        for t in self._tensors:
            _tensor_for.pop(id(t), None)
        self._undo.__exit__()
