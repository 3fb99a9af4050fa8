"""Find the line where a loss itself detaches a part of what it returns, in the first call of an unrolled loss."""

import sys
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from ..call.messages import is_users, line_of
from ..torch_private import FunctionMode, pytree

_DETACH = {"detach", "detach_"}
_READ = Tensor.grad.__get__  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
_SWITCHES = (Tensor.requires_grad_, Tensor.requires_grad.__set__)  # pyright: ignore[reportAttributeAccessIssue]


class Detached:
    """The lines at which the losses of one call detach something.

    A layer of D that detaches, as a straight-through estimator does, is meant to, and is left out.
    """

    def __init__(self, modules: Iterable[nn.Module], owned: Iterable[Tensor], who: str) -> None:
        self.found: list[str] = []  # A text for each loss whose value is computed from something that it has detached.
        # By id, the tensors that a loss has made require grad, as a gradient penalty does.
        self.switched_on: dict[int, Tensor] = {}
        self.switched_off: dict[int, Tensor] = {}  # By id, the parameters that a loss has frozen.
        self._modules = {id(m) for m in modules}
        self._owned = {id(p) for p in owned}
        self._who = who
        self._seen: set[str] = set()

    def run(self, name: str, loss: Callable[..., Tensor], *batch: Any, **kwargs: Any) -> Tensor:
        """Run a loss, and watch it if none of this name has run before."""
        if name in self._seen:
            return loss(*batch, **kwargs)
        self._seen.add(name)
        with _Mode(self._modules, self._owned, self.switched_on, self.switched_off) as mode:
            value = loss(*batch, **kwargs)
        if mode.read:
            raise ValueError(
                f"{name} reads .grad of a parameter of {self._who}, at {mode.read}: within an unroll there is none, "
                "and in real steps there may be one of an earlier step. Take gradients with torch.autograd.grad, or "
                "leave this out where unroll_wrap.is_unrolling()."
            )
        if mixed := [tuple(p.shape) for p in self.switched_off.values() if p.requires_grad]:
            raise ValueError(
                f"{name} switches requires_grad off for parameters of shapes {mixed[:4]} and on again: a part of it "
                "depends on them without a derivative, which an unroll would miss. Freeze them for all of the loss, or "
                "for none of it."
            )
        if place := mode.of(value):
            self.found.append(f"{name} at {place}")
        return value


class _Mode(FunctionMode):
    def __init__(self, modules: set[int], owned: set[int], on: dict[int, Tensor], off: dict[int, Tensor]) -> None:
        super().__init__()
        self.read: str | None = None
        self._modules = modules
        self._owned = owned
        self._on = on
        self._off = off
        # The tensors are kept beside their ids, because the id of a freed tensor may pass to another one.
        self._cut: dict[int, tuple[Tensor, str]] = {}

    def of(self, value: Any) -> str | None:
        """Return the line that detached something from which ``value`` is computed; None if there is none."""
        return self._cut[id(value)][1] if id(value) in self._cut else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        depends = [t.requires_grad and t.grad_fn is not None for t in given]
        name = getattr(func, "__name__", "")
        if func in _SWITCHES:
            self._switch(*args[:2], **(kwargs or {}))
        if func == _READ and id(args[0]) in self._owned and is_users(frame := sys._getframe(1)):
            self.read = line_of(frame)
        out = func(*args, **(kwargs or {}))
        if name == "__get__":
            name = getattr(getattr(func, "__self__", None), "__name__", "")
        place = self._line() if (name in _DETACH or name == "data") and any(depends) else None
        place = place or next((self._cut[id(t)][1] for t in given if id(t) in self._cut), None)
        if place:
            for t in pytree.tree_leaves(out):
                if isinstance(t, Tensor) and t.is_floating_point():
                    self._cut[id(t)] = t, place
        return out

    def _switch(self, tensor: Tensor, requires_grad: bool = True) -> None:
        if requires_grad and not tensor.requires_grad and not isinstance(tensor, nn.Parameter):
            self._on[id(tensor)] = tensor
        elif not requires_grad and tensor.requires_grad and isinstance(tensor, nn.Parameter):
            self._off[id(tensor)] = tensor

    def _line(self) -> str | None:
        """Return the line of the user's code that is running; None inside a layer of D."""
        frame: Any = sys._getframe(2)
        place = None
        while frame is not None and frame.f_code is not Detached.run.__code__:
            if frame.f_code.co_name == "_call_impl" and id(frame.f_locals.get("self")) in self._modules:
                return None
            if place is None and is_users(frame):
                place = line_of(frame)
            frame = frame.f_back
        return place
