"""Find the line where a loss detaches a part of what it returns, or reads what an unroll has no values for.

Losses are watched in the first call of an unrolled loss.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from ..call.messages import is_users, line_of
from ..torch_private import FunctionMode, is_wrapped, pytree

_DETACH = {"detach", "detach_", "data", "tensor", "new_tensor"}
_READ = Tensor.grad.__get__  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
_SWITCHES = (Tensor.requires_grad_, Tensor.requires_grad.__set__)  # pyright: ignore[reportAttributeAccessIssue]
# What a loss keeps of its first run it may use in its second.
_RUNS = 2


class Detached:
    """The lines at which the losses of one call detach something, or read what an unroll has no values for.

    A layer that detaches, as a straight-through estimator does, is meant to, and is left out, be it of D or of another
    network that trains, such as a generator that the losses run.

    Args:
        modules: the modules of D.
        owned: the parameters that move.
        state: the tensors of the optimizer's state.
        who: what messages call D.
    """

    def __init__(
        self, modules: Iterable[nn.Module], owned: Iterable[Tensor], state: Iterable[Tensor], who: str
    ) -> None:
        self.found: list[str] = []  # A text for each loss whose value is computed from something that it has detached.
        # By id, the tensors that a loss has made require grad, as a gradient penalty does.
        self.switched_on: dict[int, Tensor] = {}
        self.switched_off: dict[int, Tensor] = {}  # By id, the parameters that a loss has frozen.
        self._modules = {id(m) for m in modules}
        self._owned = {id(p): p for p in owned}
        self._state = _memory_of(state)
        self._who = who
        self._runs: Counter[str] = Counter()

    def run(self, name: str, loss: Callable[..., Tensor], *batch: Any, **kwargs: Any) -> Tensor:
        """Run a loss, and watch it if it has hardly run before."""
        if self._runs[name] == _RUNS:
            return loss(*batch, **kwargs)
        self._runs[name] += 1
        with _Mode(self._modules, self._owned, self._state, self.switched_on, self.switched_off) as mode:
            value = loss(*batch, **kwargs)
        if mode.read:
            raise _error(name, self._who, *mode.read)
        if mixed := [tuple(p.shape) for p in self.switched_off.values() if p.requires_grad]:
            raise ValueError(
                f"{name} switches requires_grad off for parameters of shapes {mixed[:4]} and on again: a part of it "
                "depends on them without a derivative, which an unroll would miss. Freeze them for all of the loss, or "
                "for none of it."
            )
        if (place := mode.of(value)) and (text := f"{name} at {place}") not in self.found:
            self.found.append(text)
        return value


class _Mode(FunctionMode):
    def __init__(
        self,
        modules: set[int],
        owned: dict[int, Tensor],
        state: set[int],
        on: dict[int, Tensor],
        off: dict[int, Tensor],
    ) -> None:
        super().__init__()
        self.read: tuple[str, str] | None = None  # What the loss reads that an unroll cannot give it, and the line.
        self._modules = modules
        self._owned = owned
        self._state = state
        self._memory = _memory_of(owned.values())
        self._on = on
        self._off = off
        self._no_grad: str | None = None  # The line at which the loss has switched gradients off, while they are.
        # The tensors are kept beside their ids, because the id of a freed tensor may pass to another one.
        self._cut: dict[int, tuple[Tensor, str]] = {}
        # What layers have detached is not cut, and is kept to be known.
        self._meant: dict[int, Tensor] = {}
        # The memory of what has been computed, of which Variable(x) makes a leaf without calling a function of torch.
        self._computed: dict[int, StorageWeakRef] = {}

    def of(self, value: Any) -> str | None:
        """Return the line that detached something from which ``value`` is computed; None if there is none."""
        return self._cut[id(value)][1] if id(value) in self._cut else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.compiler.is_compiling():
            return func(*args, **(kwargs or {}))
        given = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        name = getattr(func, "__name__", "")
        if name == "__get__":
            name = getattr(getattr(func, "__self__", None), "__name__", "")
        if func in _SWITCHES:
            self._switch(*args[:2], **(kwargs or {}))
        if name == "_set_grad_enabled":
            self._no_grad = None if args[0] else self._no_grad or self._line()
        if what := self._without_value(func, name, given, args, kwargs or {}):
            frame: Any = sys._getframe(1)
            # Torch itself looks at gradients, when they are cleared.
            while frame is not None and func != _READ and not is_users(frame):
                frame = frame.f_back
            if frame is not None and is_users(frame):
                self.read = what, line_of(frame)
        for t in given:
            self._look_at(t)
        used = _used(name, given)
        needs_grad = any([t.requires_grad for t in used])
        depends = any([t.requires_grad and (t.grad_fn is not None or id(t) in self._owned) for t in used])
        out = func(*args, **(kwargs or {}))
        cuts = name in _DETACH or (func is torch.autograd.grad and not (kwargs or {}).get("create_graph"))
        place = self._line() if cuts and depends else None
        place = place or (self._no_grad if needs_grad else None)
        place = place or next((self._cut[id(t)][1] for t in used if id(t) in self._cut), None)
        for t in pytree.tree_leaves(out):
            if isinstance(t, Tensor) and t.is_floating_point():
                if place:
                    self._cut[id(t)] = t, place
                    self._keep_memory(t)
                elif self._is_alias(t):
                    self._meant[id(t)] = t
                self._look_at(t)
        return out

    def _look_at(self, tensor: Tensor) -> None:
        """Note where a result lies, and note a leaf in the memory of one as cut, if no function has made it."""
        if tensor.grad_fn is not None:
            self._keep_memory(tensor)
        elif id(tensor) not in self._cut and id(tensor) not in self._meant and self._is_alias(tensor):
            # It is often a layer that sees it first, and the loss that has made it.
            self._cut[id(tensor)] = tensor, self._line(of_layers=False) or ""

    def _keep_memory(self, tensor: Tensor) -> None:
        base = tensor._base
        # A leaf may be viewed, and used as it is.
        if _has_memory(tensor) and (base is None or base.grad_fn is not None):
            storage = tensor.untyped_storage()
            self._computed[storage._cdata] = StorageWeakRef(storage)

    def _is_alias(self, tensor: Tensor) -> bool:
        """Return whether a leaf lies in the memory of a result, as ``Variable(x)`` does."""
        if tensor.grad_fn is not None or id(tensor) in self._owned or not _has_memory(tensor):
            return False
        reference = self._computed.get(tensor.untyped_storage()._cdata)
        return reference is not None and not reference.expired()

    def _without_value(self, func: Any, name: str, given: list[Tensor], args: Any, kwargs: Any) -> str | None:
        """Return which thing a function reads that an unroll cannot give it; None if it reads none."""
        if func == _READ and id(args[0]) in self._owned:
            return "grad"
        if func == _READ and args[0].retains_grad:
            return "kept grad"
        if self._state and _memory_of(given) & self._state:
            return "state"
        offset = kwargs.get("storage_offset", args[3] if len(args) > 3 else None)
        return "offset" if name == "as_strided" and offset and _memory_of(given) & self._memory else None

    def _switch(self, tensor: Tensor, requires_grad: bool = True) -> None:
        if requires_grad and not tensor.requires_grad and not isinstance(tensor, nn.Parameter):
            self._on[id(tensor)] = tensor
        elif not requires_grad and tensor.requires_grad and isinstance(tensor, nn.Parameter):
            self._off[id(tensor)] = tensor

    def _line(self, of_layers: bool = True) -> str | None:
        """Return the line of the user's code that is running; inside a layer None, or else the line that calls it."""
        frame: Any = sys._getframe(2)
        place = None
        while frame is not None and frame.f_code is not Detached.run.__code__:
            if frame.f_code.co_name == "_call_impl" and self._may_detach(frame.f_locals.get("self")):
                if of_layers:
                    return None
                place = None
            elif place is None and is_users(frame):
                place = line_of(frame)
            frame = frame.f_back
        return place

    def _may_detach(self, module: Any) -> bool:
        """Return whether a module is a layer of D or of another network that trains, and not a loss that has D."""
        if id(module) in self._modules:
            return True
        params = list(module.parameters()) if isinstance(module, nn.Module) else []
        return any(p.requires_grad for p in params) and not any(id(p) in self._owned for p in params)


def _error(name: str, who: str, read: str, line: str) -> ValueError:
    instead = "Take gradients with torch.autograd.grad, or leave this out where unroll_wrap.is_unrolling()."
    if read == "grad":
        return ValueError(
            f"{name} reads .grad of a parameter of {who}, at {line}: within an unroll there is none, and in real steps "
            f"there may be one of an earlier step. {instead}"
        )
    if read == "kept grad":
        return ValueError(
            f"{name} reads a gradient that retain_grad() keeps, at {line}: an unroll computes gradients without "
            f"backward(), which would set it. {instead}"
        )
    if read == "state":
        return ValueError(
            f"{name} reads the state of {who}'s optimizer, at {line}: an unroll keeps the state of its steps in "
            "tensors of its own, and this is the state before the call. Leave it out where unroll_wrap.is_unrolling()."
        )
    return ValueError(
        f"{name} reads parameters of {who} by as_strided with an offset, at {line}: it counts from the beginning of a "
        "memory that parameters share in an unroll. Leave the offset out, or take a slice (p.flatten()[offset:])."
    )


def _used(name: str, given: list[Tensor]) -> list[Tensor]:
    """Return those of a function's arguments on whose values its result depends: others give it a shape or a type."""
    if name.endswith("_like") or (name.startswith("new") and name != "new_tensor"):
        return []
    return given[:1] if name.endswith("_as") else given


def _has_memory(tensor: Tensor) -> bool:
    # Within torch.func.grad and vmap a tensor is a wrapper.
    return tensor.layout is torch.strided and tensor.numel() > 0 and not is_wrapped(tensor)


def _memory_of(tensors: Iterable[Tensor]) -> set[int]:
    """Return the storages of these tensors; those of sharded and traced ones have no address in memory."""
    return {t.untyped_storage()._cdata for t in tensors if _has_memory(t)}
