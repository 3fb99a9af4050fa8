"""Find where a loss turns a tensor with a graph into one without, and run the loss with such tensors held constant.

``detach()``, ``.data``, ``.item()``, code under ``no_grad`` and a layer's update of a buffer stop a derivative, but not
a difference. If these tensors are held at their first values, they stop a difference as well. Decisions, which are
comparisons, indices and the pieces of a ReLU, are held with them, because a derivative takes them for constant too.
"""

import os
import sys
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.overrides import TorchFunctionMode

from ..evaluation.linear_pieces import Diverged, Piece, is_piecewise, piece_of
from ..messages import is_users, line_of
from ..torch_private import pytree

# The results of these functions are arbitrary, or do not depend on values.
_NO_VALUE = {"empty_like", "new_empty", "new_empty_strided", "requires_grad_", "__set__", "__len__", "__bool__"}
# These functions update their statistics but leave the versions of these tensors unchanged.
_WITH_STATISTICS = {"batch_norm", "instance_norm"}
_DECISION = "a decision"


class Cuts:
    """The cuts and decisions of a first run, in order, and the cuts whose values a later run has changed."""

    def __init__(self) -> None:
        self.first: list[tuple[str, list[Any]]] = []  # The description of each, with its values.
        # Descriptions of the cuts at which a held run has computed another value. Decisions are left out.
        self.found: list[str] = []
        self.numbers: set[str] = set()  # Descriptions of the cuts that read a number.
        self.layers: set[str] = set()  # Descriptions of those inside a layer.

    def watched(self, loss: str) -> TorchFunctionMode:
        """Return a context that notes every cut and decision of the named loss."""
        return _Watch(self, loss)

    def held(self, places: Collection[str] | None = None) -> Callable[[str], TorchFunctionMode]:
        """Return ``loss -> context`` for one later run; it holds all decisions, and the cuts at ``places`` or all."""
        mode = _Held(self, places)
        return lambda loss: mode

    def untold(self, place: str, warnings: str) -> bool:
        """Return whether a call warns of no such cut, given what it has warned of.

        A number leaves torch, where a call cannot follow it. A layer that detaches a tensor means to.
        """
        loss, _, _ = _line(place).partition(" at ")
        return place in self.numbers or not (place in self.layers or f"{loss} at " in warnings)


class _Watch(TorchFunctionMode):
    def __init__(self, cuts: Cuts, loss: str) -> None:
        super().__init__()
        self._cuts = cuts
        self._loss = loss

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if is_piecewise(func, args, kwargs) and not _in_forward():
            self._cuts.first.append((_DECISION, [piece_of(func, args, kwargs)]))
            return func(*args, **kwargs)
        out, made, written = _run(func, args, kwargs)
        if made or written:
            values = [v.detach().clone() if isinstance(v, Tensor) else v for v in (*made, *written)]
            decided = not written and not any(map(_is_number, made))
            place = _DECISION if decided else where(func, args, self._loss)
            self._cuts.first.append((place, values))
            if any(isinstance(value, float) for value in made):
                self._cuts.numbers.add(place)
            elif not decided and _in_layer():
                self._cuts.layers.add(place)
        return out


class _Held(TorchFunctionMode):
    def __init__(self, cuts: Cuts, places: Collection[str] | None) -> None:
        super().__init__()
        self._following = iter(cuts.first)
        self._found = cuts.found
        self._lines = None if places is None else set(map(_line, (_DECISION, *places)))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if is_piecewise(func, args, kwargs) and not _in_forward():
            _, values = next(self._following, ("", []))
            if len(values) != 1 or not isinstance(values[0], Piece) or values[0].slope.shape != args[0].shape:
                raise Diverged
            return values[0](args[0])
        out, made, written = _run(func, args, kwargs)
        now = [*made, *written]
        if not now:
            return out
        place, values = next(self._following, ("", []))
        if list(map(_shape, values)) != list(map(_shape, now)):
            raise Diverged
        if place != _DECISION and not all(map(_same, values, now)) and _line(place) not in map(_line, self._found):
            self._found.append(place)
        if self._lines is not None and _line(place) not in self._lines:
            return out
        for tensor, value in zip(written, values[len(made) :], strict=True):
            # A write through .data leaves the version unchanged, which batch_norm checks in the statistics it saves.
            tensor.data.copy_(value)
        # Results are replaced and not overwritten, because that of detach() shares the memory of its argument. An
        # unchanged result stays as it is, because a layer may initialise itself by writing to that memory.
        following = iter([_held(v, now) for v, now in zip(values[: len(made)], made, strict=True)])
        mine = {id(v) for v in made}
        return pytree.tree_map(lambda v: next(following) if id(v) in mine else v, out)


def _run(func: Any, args: Any, kwargs: Any) -> tuple[Any, list[Any], list[Tensor]]:
    """Return the result, its parts without graph if an argument has one, and arguments without graph it wrote to."""
    given = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    if not any(t.requires_grad for t in given) or getattr(func, "__name__", "") in _NO_VALUE:
        return func(*args, **kwargs), [], []
    plain = [t for t in given if not t.requires_grad]
    versions = [t._version for t in plain]
    out = func(*args, **kwargs)
    # A tensor that has a graph by now, as after `total += loss`, is not cut off.
    written = [t for t, v in zip(plain, versions, strict=True) if t._version != v and not t.requires_grad]
    if getattr(func, "__name__", "") in _WITH_STATISTICS:
        named = [*args[1:3], kwargs.get("running_mean"), kwargs.get("running_var")]
        written += [t for t in plain if any(t is one for one in named)]
    made = [v for v in pytree.tree_leaves(out) if _is_value(v) and not any(v is t for t in plain)]
    if (made or written) and _in_forward():
        return out, [], []
    return out, made, written


def _in_forward() -> bool:
    """Return whether a torch.autograd.Function is running, whose own backward covers its operations without graph."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_name == "forward" and isinstance(frame.f_locals.get(code.co_varnames[0]), FunctionCtx):
            return True
        frame = frame.f_back
    return False


def _in_layer() -> bool:
    """Return whether a module is running."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != "_call_impl":
        frame = frame.f_back
    return frame is not None


def _is_value(value: Any) -> bool:
    return not value.requires_grad if isinstance(value, Tensor) else isinstance(value, float)


def _is_number(value: Any) -> bool:
    return value.is_floating_point() if isinstance(value, Tensor) else isinstance(value, float)


def _shape(value: Any) -> Any:
    return (value.dtype, tuple(value.shape)) if isinstance(value, Tensor) else type(value)


def _held(value: Any, now: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return now if _same(value, now) else value.clone()


def _same(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


def _line(place: str) -> str:
    """Return the line of code in a description, because one line often cuts several tensors and counts once."""
    return place.partition(", in ")[2]


def where(func: Any, args: Any, loss: str) -> str:
    """Return a description in the user's terms: the function, its tensor, and the line of the user's code."""
    name = getattr(func, "__name__", str(func))
    name = getattr(getattr(func, "__self__", None), "__name__", name) if name == "__get__" else name
    tensor = next((t for t in pytree.tree_leaves(args) if isinstance(t, Tensor) and t.requires_grad), None)
    shape = "a tensor" if tensor is None else f"a tensor of shape {tuple(tensor.shape)}"
    made = f" that {tensor.grad_fn.name()} made" if tensor is not None and tensor.grad_fn is not None else ""
    if made and _is_of_batch(tensor):
        made = " of the batch"
    caller: Any = sys._getframe(2)
    frame: Any = caller
    while frame is not None and not is_users(frame):
        frame = frame.f_back
    if frame is None:
        return f"{name} of {shape}{made}, in {loss}"
    if frame is not caller and caller.f_code.co_name != "handle_torch_function":
        name = f"{caller.f_code.co_name} ({os.path.basename(caller.f_code.co_filename)})"
        made = ""
    under = "" if torch.is_grad_enabled() else ", under no_grad"
    return f"{name} of {shape}{made}{under}, in {loss} at {line_of(frame)}".rstrip(": ")


def _is_of_batch(tensor: Any) -> bool:
    """Return whether a tensor is a clone of a leaf, as RealSteps passes those of the batch."""
    node = tensor.grad_fn
    return node.name() == "CloneBackward0" and node.next_functions[0][0].name() == "torch::autograd::AccumulateGrad"
