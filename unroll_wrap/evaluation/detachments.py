"""Find the line where a loss detaches a part of what it returns."""

import sys
from collections.abc import Mapping
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from ..live.memory import has_memory
from ..messages import is_users, line_of
from ..torch_private import pytree

_IN_TRAINING = (
    ", which detaches in D's own training alone. What D computes may stay as it is: that is a part of D's step, as in "
    "your loop"
)
_DETACH = f"For x from the generator, write unroll_wrap.detach(x) in place of x.detach() or x.data{_IN_TRAINING}"
_COPY = f"For x from the generator, write unroll_wrap.detach(x) in place of torch.tensor(x){_IN_TRAINING}"
_NO_GRAD = f"For what the generator makes, write unroll_wrap.no_grad() in place of torch.no_grad(){_IN_TRAINING}"
_VARIABLE = (
    "That line is the first to use it. Write x.requires_grad_() in place of "
    "torch.autograd.Variable(x, requires_grad=True), which detaches x"
)
_WITHOUT_GRAPH = "torch.autograd.grad gives a constant: pass create_graph=True"
_REMEDIES = {"detach": _DETACH, "detach_": _DETACH, "data": _DETACH, "tensor": _COPY, "new_tensor": _COPY}
_RUN = str(Path(__file__).parents[1] / "run.py")


class Cut(NamedTuple):
    """A place at which something is detached."""

    line: str  # The user's line, as ``file:number: source``.
    remedy: str  # What to do if it is not meant: a sentence without its full stop.


class Detachments:
    """What the losses of one call have detached, and what they have computed from that.

    A layer that detaches, as a straight-through estimator does, is meant to, and is left out, be it of D or of another
    network that trains, such as a generator that the losses run.

    Args:
        modules: the ids of the modules of D.
        owned: by id, the parameters that move.
        until: the code that runs the losses, beyond which no line is a loss's.
    """

    def __init__(self, modules: set[int], owned: Mapping[int, Tensor], until: CodeType) -> None:
        self._modules = modules
        self._owned = owned
        self._until = until
        self._no_grad: str | None = None  # The line at which the loss has switched gradients off, while they are.
        # The tensors are kept beside their ids, because the id of a freed tensor may pass to another one.
        self._cut: dict[int, tuple[Tensor, Cut]] = {}
        # What layers have detached is not cut, and is kept to be known.
        self._meant: dict[int, Tensor] = {}
        # The memory of what has been computed, of which Variable(x) makes a leaf without calling a function of torch,
        # and what has cut it before, if anything.
        self._computed: dict[int, tuple[StorageWeakRef, Cut | None]] = {}

    def of(self, value: Any) -> Cut | None:
        """Return the place that detached something from which ``value`` is computed; None if there is none."""
        return self._cut[id(value)][1] if id(value) in self._cut else None

    def run(self, func: Any, name: str, given: list[Tensor], args: Any, kwargs: Any) -> Any:
        """Return what one of torch's functions returns, and note what it detaches."""
        if name == "_set_grad_enabled":
            self._no_grad = None if args[0] else self._no_grad or self._line()
        for t in given:
            self._look_at(t)
        cut = self._cut_by(func, name, _used(name, given), kwargs)
        out = func(*args, **kwargs)
        for t in pytree.tree_leaves(out):
            if isinstance(t, Tensor) and t.is_floating_point():
                if cut:
                    self._cut[id(t)] = t, cut
                    self._keep_memory(t, cut)
                elif self._is_alias(t):
                    self._meant[id(t)] = t
                self._look_at(t)
        return out

    def _cut_by(self, func: Any, name: str, used: list[Tensor], kwargs: Any) -> Cut | None:
        """Return the place that detaches the result of a function of these tensors."""
        remedy = _REMEDIES.get(name)
        if func is torch.autograd.grad and not kwargs.get("create_graph"):
            remedy = _WITHOUT_GRAPH
        made = [t for t in used if t.requires_grad and (t.grad_fn is not None or id(t) in self._owned)]
        if remedy and made and (line := self._line()):
            return Cut(line, remedy)
        # Parameters of another network may be those of the generator, which the loss runs.
        if self._no_grad and (made or any([t.requires_grad and isinstance(t, nn.Parameter) for t in used])):
            return Cut(self._no_grad, _NO_GRAD)
        return next((self._cut[id(t)][1] for t in used if id(t) in self._cut), None)

    def _look_at(self, tensor: Tensor) -> None:
        """Note where a result lies, and note a leaf in the memory of one as cut, if no function has made it."""
        if tensor.grad_fn is not None:
            self._keep_memory(tensor)
        elif id(tensor) not in self._cut and id(tensor) not in self._meant and self._is_alias(tensor):
            _, cut = self._computed[tensor.untyped_storage()._cdata]
            # It is often a layer that sees it first, and the loss that has made it in this line or before.
            self._cut[id(tensor)] = tensor, cut or Cut(self._line(of_layers=False) or "", _VARIABLE)

    def _keep_memory(self, tensor: Tensor, cut: Cut | None = None) -> None:
        base = tensor._base
        # A leaf may be viewed, and used as it is.
        if has_memory(tensor) and (base is None or base.grad_fn is not None):
            storage = tensor.untyped_storage()
            self._computed[storage._cdata] = StorageWeakRef(storage), cut

    def _is_alias(self, tensor: Tensor) -> bool:
        """Return whether a leaf lies in the memory of a result, as ``Variable(x)`` does."""
        if tensor.grad_fn is not None or id(tensor) in self._owned or not has_memory(tensor):
            return False
        kept = self._computed.get(tensor.untyped_storage()._cdata)
        return kept is not None and not kept[0].expired()

    def _line(self, of_layers: bool = True) -> str | None:
        """Return the line of the user's code that is running; inside a layer None, or else the line that calls it."""
        frame: Any = sys._getframe(2)
        line = None
        while frame is not None and frame.f_code is not self._until:
            if frame.f_code.co_filename == _RUN:
                return None  # An unrolled loss within this one detaches what it likes.
            if frame.f_code.co_name == "_call_impl" and self._may_detach(frame.f_locals.get("self")):
                if of_layers:
                    return None
                line = None
            elif line is None and is_users(frame):
                line = line_of(frame)
            frame = frame.f_back
        return line

    def _may_detach(self, module: Any) -> bool:
        """Return whether a module is a layer of D or of another network that trains, and not a loss that has D."""
        if id(module) in self._modules:
            return True
        params = list(module.parameters()) if isinstance(module, nn.Module) else []
        return any(p.requires_grad for p in params) and not any(id(p) in self._owned for p in params)


def _used(name: str, given: list[Tensor]) -> list[Tensor]:
    """Return those of a function's arguments on whose values its result depends: others give it a shape or a type."""
    if name.endswith("_like") or (name.startswith("new") and name != "new_tensor"):
        return []
    return given[:1] if name.endswith("_as") else given
