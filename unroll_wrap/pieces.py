"""Functions that are linear piece by piece, continued from the piece that a first run was on.

Where a unit of a ReLU net changes its piece, the gradient of ``d_loss`` jumps, and with it every later step of D: real
steps are no continuous function of the fake. No derivative sees these jumps, and a difference sees little else.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.overrides import TorchFunctionMode

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
    """A later run takes another way through the code than the first one."""


class Piece(NamedTuple):
    """x ↦ slope · x + offset, element by element.

    Attributes:
        slope: of each element's piece.
        offset: the same; None where it is 0 for all.
        in_place: whether the result is written to the argument.
    """

    slope: Tensor
    offset: Tensor | None
    in_place: bool

    def __call__(self, x: Tensor) -> Tensor:
        """The function, continued."""
        out = self.slope * x if self.offset is None else torch.addcmul(self.offset, self.slope, x)
        return x.copy_(out) if self.in_place else out


def is_piecewise(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call is one of these, with a graph through its first argument alone."""
    if _name(func) not in _PIECEWISE or not args or not isinstance(args[0], Tensor):
        return False
    others = pytree.tree_leaves((list(args[1:]), dict(kwargs)))
    return args[0].requires_grad and not any(isinstance(t, Tensor) and t.requires_grad for t in others)


def piece_of(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Piece:
    """The piece on which each element of the first argument is; that is left alone."""
    with torch.enable_grad():
        x = args[0].detach().requires_grad_()
        copy = x.clone()
        y = func(copy, *args[1:], **kwargs)
        (slope,) = torch.autograd.grad(y, x, torch.ones_like(y))
    offset = None if _name(func) in _THROUGH_ZERO else (y - slope * x).detach()
    return Piece(slope, offset, y is copy)


def _name(func: Callable[..., Any]) -> str:
    """Also of relu_ and _threshold."""
    return getattr(func, "__name__", "").strip("_")


class Pieces:
    """The pieces of one run, in the order of its calls, for later runs to continue."""

    def __init__(self) -> None:
        self._first: list[tuple[str, Piece]] = []

    def noted(self) -> TorchFunctionMode:
        """The context of the first run."""

        def note(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
            self._first.append((_name(func), piece_of(func, args, kwargs)))
            return func(*args, **kwargs)

        return _Piecewise(note)

    @contextmanager
    def held(self) -> Iterator[None]:
        """The context of a later one.

        Raises:
            Diverged: it makes other calls than the first.
        """
        following = iter(self._first)

        def hold(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:  # noqa: ARG001
            name, piece = next(following, ("", None))
            if piece is None or name != _name(func) or piece.slope.shape != args[0].shape:
                raise Diverged
            return piece(args[0])

        with _Piecewise(hold):
            yield
        if next(following, None):
            raise Diverged


class _Piecewise(TorchFunctionMode):
    """Piecewise linear calls go to another function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self._function = function

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return self._function(func, args, kwargs) if is_piecewise(func, args, kwargs) else func(*args, **kwargs)
