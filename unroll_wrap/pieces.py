"""Functions that are linear piece by piece, continued from the piece that a first run was on.

Where a unit of a ReLU net changes its piece, the gradient of ``d_loss`` jumps, and with it every later step of D: real
steps are no continuous function of the fake. No derivative sees these jumps, and a difference sees little else.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

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


class Piece(NamedTuple):
    """x ↦ slope · x + offset, element by element.

    Attributes:
        slope: of each element's piece.
        offset: the same.
        in_place: whether the result is written to the argument.
    """

    slope: Tensor
    offset: Tensor
    in_place: bool

    def __call__(self, x: Tensor) -> Tensor:
        """The function, continued."""
        out = self.slope * x + self.offset
        return x.copy_(out) if self.in_place else out


def is_piecewise(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call is one of these, with a graph through its first argument alone."""
    # relu_ and _threshold too.
    if getattr(func, "__name__", "").strip("_") not in _PIECEWISE or not args or not isinstance(args[0], Tensor):
        return False
    others = pytree.tree_leaves((list(args[1:]), dict(kwargs)))
    return args[0].requires_grad and not any(isinstance(t, Tensor) and t.requires_grad for t in others)


def piece_of(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Piece:
    """The piece on which each element of the first argument is; that is left alone."""
    # A checkpoint counts what is saved, and this is not its own.
    with torch.enable_grad(), saved_tensors_hooks(_as_it_is, _as_it_is):
        x = args[0].detach().clone().requires_grad_()
        copy = x.clone()
        y = func(copy, *args[1:], **kwargs)
        (slope,) = torch.autograd.grad(y.sum(), x)
    return Piece(slope, (y - slope * x).detach(), y is copy)


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
