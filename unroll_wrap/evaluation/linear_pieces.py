"""Extend piecewise linear functions from the piece that a first run was on.

Where a unit of a ReLU network changes its piece, the gradient of ``d_loss`` jumps, and with it every later step of D:
real steps are no continuous function of ``fake``. Derivatives do not contain the jumps, but they dominate differences.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from ..torch_private import FunctionMode, pytree

_PIECEWISE = {
    "abs",
    "absolute",
    "clamp",
    "clamp_max",
    "clamp_min",
    "clip",
    "hardshrink",
    "hardtanh",
    "leaky_relu",
    "relu",
    "relu6",
    "softshrink",
    "threshold",
}
_THROUGH_ZERO = {"abs", "absolute", "leaky_relu", "relu"}


class Diverged(Exception):
    """A later run calls other piecewise linear functions than the first."""


class Piece(NamedTuple):
    """x ↦ slope · x + offset, element by element."""

    slope: Tensor  # The slope for each element.
    offset: Tensor | None  # The offset for each element; None if all are 0.
    in_place: bool  # Whether the function writes its result to its argument.

    def __call__(self, x: Tensor) -> Tensor:
        """Return the linear extension at ``x``."""
        out = self.slope * x if self.offset is None else torch.addcmul(self.offset, self.slope, x)
        return x.copy_(out) if self.in_place else out


def is_piecewise(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Return whether a call is of a piecewise linear function, with a graph through its first argument only."""
    if _name(func) not in _PIECEWISE or not args or not isinstance(args[0], Tensor):
        return False
    others = pytree.tree_leaves((list(args[1:]), dict(kwargs)))
    # The modulus of a complex number is smooth, and no linear function of it.
    real = args[0].requires_grad and not args[0].is_complex()
    return real and not any(isinstance(t, Tensor) and t.requires_grad for t in others)


def piece_of(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Piece:
    """Return the piece that each element of the first argument is on, without writing to that argument."""
    # A checkpoint counts the tensors that are saved, and must not count these.
    with torch.enable_grad(), _Untouched():
        x = args[0].detach().requires_grad_()
        copy = x.clone()
        y = func(copy, *args[1:], **kwargs)
        (slope,) = torch.autograd.grad(y, x, torch.ones_like(y))
    offset = None if _name(func) in _THROUGH_ZERO else (y - slope * x).detach()
    return Piece(slope, offset, y is copy)


class _Untouched(saved_tensors_hooks):
    def __init__(self) -> None:
        super().__init__(_as_it_is, _as_it_is)


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _name(func: Callable[..., Any]) -> str:
    """Return the name of a function without underscores, which gives relu for relu_ too."""
    return getattr(func, "__name__", "").strip("_")


class Pieces:
    """The pieces of a first run, in the order of its calls, which later runs extend."""

    def __init__(self) -> None:
        self._first: list[tuple[str, Piece]] = []

    def noted(self) -> TorchFunctionMode:
        """Return the context for the first run, which notes its pieces."""
        return _Noted(self._first)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold a later run on the pieces of the first; raise Diverged if it makes other calls."""
        with _Held(self._first) as mode:
            yield
        if mode.position < len(self._first):
            raise Diverged


class _Noted(FunctionMode):
    def __init__(self, first: list[tuple[str, Piece]]) -> None:
        super().__init__()
        self._first = first

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if is_piecewise(func, args, kwargs):
            self._first.append((_name(func), piece_of(func, args, kwargs)))
        return func(*args, **kwargs)

    def again(self) -> AbstractContextManager[object]:
        """Return the context for a checkpoint's recomputation, which is on the same pieces anyway."""
        return nullcontext()


class _Held(FunctionMode):
    def __init__(self, first: list[tuple[str, Piece]], position: int = 0) -> None:
        super().__init__()
        self._first = first
        self.position = position

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not is_piecewise(func, args, kwargs):
            return func(*args, **kwargs)
        if self.position == len(self._first):
            raise Diverged
        name, piece = self._first[self.position]
        if name != _name(func) or piece.slope.shape != args[0].shape:
            raise Diverged
        self.position += 1
        return piece(args[0])

    def again(self) -> AbstractContextManager[object]:
        """Return the context for a checkpoint's recomputation, which starts from the current call."""
        return _Held(self._first, self.position)
