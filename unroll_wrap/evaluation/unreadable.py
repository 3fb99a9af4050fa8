"""Refuse losses that read what an unroll has no values for: gradients, optimizer state, memory and graphs of others."""

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..call.batch import Arguments, tensors_in
from ..live.memory import memory_of, overlapping, spans
from ..messages import is_ours, is_users, line_of
from .graph import is_cut_off

_READ = Tensor.grad.__get__  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]


class Unreadable:
    """What the losses of one call read that an unroll cannot give them.

    Args:
        owned: by id, the parameters that move.
        state: the tensors of the optimizer's state.
        moving: D's own tensors that change in an unroll, which begin it in other memory than they have now.
        who: what messages call D.
    """

    arguments: Arguments  # Those of the loss that runs.

    def __init__(
        self, owned: Mapping[int, Tensor], state: Iterable[Tensor], moving: Iterable[Tensor], who: str
    ) -> None:
        self._owned = owned
        self._state = memory_of(state)
        self._moving = {id(t): t for t in moving}
        self._homes = spans(_plain(self._moving.values()))
        self._who = who
        self._read: tuple[str, str] | None = None  # The last thing that was read, and the line.

    def look(self, func: Any, name: str, given: list[Tensor], args: Any, kwargs: Any) -> None:
        """Note whether a function that is about to run reads such a thing."""
        if not (what := self._what(func, name, given, args, kwargs)):
            return
        frame: Any = sys._getframe(2)
        if what == "before" and is_ours(frame):
            return  # The package itself puts D's tensors home, as where D's forward sets hooks on saved tensors.
        # Torch itself looks at gradients, when they are cleared.
        while frame is not None and func != _READ and not is_users(frame):
            frame = frame.f_back
        if frame is not None and is_users(frame):
            self._read = what, line_of(frame)

    def check(self, name: str, error: Exception | None = None) -> None:
        """Raise a ValueError if the loss of this name has read such a thing, which may have caused an error in it."""
        if self._read:
            raise _error(name, self._who, *self._read) from error

    def _what(self, func: Any, name: str, given: list[Tensor], args: Any, kwargs: Any) -> str | None:
        if func == _READ and id(args[0]) in self._owned:
            return "grad"
        if func == _READ and args[0].retains_grad:
            return "kept grad"
        if self._state and memory_of(given) & self._state:
            return "state"
        if self._homes and self._of_before(given):
            return "before"
        if func is torch.autograd.grad and any(
            is_cut_off(t, tensors_in(args[0]), self.arguments) for t in tensors_in(args[1])
        ):
            return "behind"
        offset = kwargs.get("storage_offset", args[3] if len(args) > 3 else None)
        if name != "as_strided" or not offset:
            return None
        # Of the parameters as they are now, in the unroll.
        return "offset" if memory_of(given) & memory_of(self._owned.values()) else None

    def _of_before(self, given: list[Tensor]) -> bool:
        """Return whether one of some tensors lies where D's own ones lay before the unroll."""
        others = _plain(t for t in given if id(t) not in self._moving)
        return bool(overlapping(others, self._homes)) and not overlapping(_plain(self._moving.values()), self._homes)


def _plain(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return the tensors that are torch's own: those of a compiler's tracer have no memory."""
    return [t for t in tensors if type(t) in (Tensor, nn.Parameter)]


def _error(name: str, who: str, what: str, line: str) -> ValueError:
    instead = "Take gradients with torch.autograd.grad, or leave this out where unroll_wrap.is_unrolling()."
    if what == "grad":
        return ValueError(
            f"{name} reads .grad of a parameter of {who}, at {line}: within an unroll there is none, and in real steps "
            f"there may be one of an earlier step. {instead}"
        )
    if what == "kept grad":
        return ValueError(
            f"{name} reads a gradient that retain_grad() keeps, at {line}: an unroll computes gradients without "
            f"backward(), which would set it. {instead}"
        )
    if what == "state":
        return ValueError(
            f"{name} reads the state of {who}'s optimizer, at {line}: an unroll keeps the state of its steps in "
            "tensors of its own, and this is the state before the call. Leave it out where unroll_wrap.is_unrolling()."
        )
    if what == "behind":
        return ValueError(
            f"{name} takes a gradient with respect to a tensor from which a tensor of the batch was made, at {line}: "
            "the tensors of the batch reach a loss without their graph. Let the loss find that tensor of the batch in "
            "a closure or an attribute (self.fake), or take the gradient before the call and pass it."
        )
    if what == "before":
        return ValueError(
            f"{name} reads {who}'s own memory through a tensor that was made before the call, as state_dict(), "
            f"p.detach() or p.data make one, at {line}: it does not follow the steps of an unroll. Read {who}'s own "
            "tensor, or a clone if the values before are meant."
        )
    return ValueError(
        f"{name} reads parameters of {who} by as_strided with an offset, at {line}: it counts from the beginning of a "
        "memory that parameters share in an unroll. Leave the offset out, or take a slice (p.flatten()[offset:])."
    )
