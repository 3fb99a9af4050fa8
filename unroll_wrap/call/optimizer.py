"""The optimizer that a user passes: a live one, a wrapper, a list of them, or a function that builds one."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..guards import is_unrolling
from ..live.undo import Undo
from ..messages import described
from ..optimizers.family import groups_of, stepped
from ..optimizers.stock import is_hosted
from .discriminator import all_parameters


class Steppers:
    """The plain optimizers inside what the user passed, and the parameters that they move.

    Args:
        optimizer: what the user passed.
        params: all parameters of the player that moves. Those that do not require grad now, while others do, count as
            frozen until they are found to require grad or to have state.
        who: what messages call the player.

    Raises:
        TypeError: ``optimizer`` is no optimizer and contains none.
        ValueError: ``optimizer`` is a function that builds one, and no parameter requires grad.
    """

    def __init__(self, optimizer: Any, params: Sequence[Tensor], who: str) -> None:
        self._who = who
        trained = [p for p in params if p.requires_grad]
        self.frozen = [p for p in params if not p.requires_grad] if trained else []
        self._built = None if _is_live(optimizer) else _from_spec(optimizer, trained, who)

    def plain(self, optimizer: Any) -> list[Any]:
        """Return the plain optimizers that ``optimizer`` contains now."""
        return _unwrapped(optimizer, self._who) if self._built is None else self._built

    def owned(self, modules: Sequence[nn.Module], optimizers: Sequence[Any]) -> list[Tensor]:
        """Return the parameters that the optimizers move, in D's order; raise if these are not D's alone."""
        listed = [p for o in optimizers for p in stepped(o)]
        held = {id(p) for p in listed}
        mine = {id(p): p for p in all_parameters(modules)}
        if len(listed) > len(held):
            raise ValueError(
                "The optimizers own the same parameter twice, so the order of their steps would matter. Pass "
                "optimizers that share none."
            )
        foreign = [] if held <= mine.keys() else [tuple(p.shape) for p in listed if id(p) not in mine]
        if foreign and len(foreign) == len(held):
            raise ValueError(
                f"The optimizer ({_names(optimizers)}) owns {len(held)} parameters, and none of them is "
                f"{self._who}'s. Pass the optimizer that steps {self._who}. If that was copied or built anew, make its "
                "optimizer after it."
            )
        if foreign:
            raise ValueError(
                f"The optimizer ({_names(optimizers)}) also moves {len(foreign)} parameters outside {self._who}, "
                f"of shapes {foreign[:4]}. Pass every module that it steps: [D, other]. If a part of "
                f"{self._who} has been replaced, make its optimizer anew and set it (unrolled.optimizer = opt_D)."
            )
        frozen: set[int] = set()
        if self.frozen:
            self.frozen = [p for p in self.frozen if not p.requires_grad]
            # A parameter that has optimizer state has been moved, whatever its requires_grad was at construction.
            trained = {id(p) for o in optimizers for p, state in getattr(o, "state", {}).items() if state}
            # Some optimizers keep no state. A gradient that is left on a parameter then shows the same.
            frozen = {id(p) for p in self.frozen if p.grad is None} - trained
        owned: list[Tensor] = [p for i, p in mine.items() if i in held and i not in frozen]
        if not owned:
            raise ValueError(
                f"The optimizer ({_names(optimizers)}) moves none of {self._who}'s parameters: it owns "
                f"{len(held)}, of which {len(frozen & held)} have never required grad. Pass the optimizer that trains "
                "it."
            )
        return owned


def check_no_network(optimizer: Any, who: str) -> None:
    """Raise if a network comes where the optimizer of the player is expected, as with (G, D, opt_D).

    Raises:
        TypeError: it does.
    """
    if isinstance(optimizer, nn.Module) and not hasattr(optimizer, "step") and not hasattr(optimizer, "optimizer"):
        raise TypeError(
            f"optimizer is {described(optimizer)}. Pass the torch.optim.Optimizer that steps {who}, right after it. No "
            "other network is passed."
        )


def _names(optimizers: Sequence[Any]) -> str:
    return ", ".join(type(o).__name__ for o in optimizers)


def refuse_shared(state: Iterable[Tensor], ids: Collection[int], who: str) -> None:
    """Raise if D keeps a tensor of its optimizer's state, which an unroll keeps in tensors of its own.

    Raises:
        ValueError: it does.
    """
    if shared := [tuple(t.shape) for t in state if id(t) in ids]:
        raise ValueError(
            f"{who} keeps a tensor of its optimizer's state, of shape {shared[0]}: within an unroll it would be the "
            f"one before the call. Let {who} keep a copy (.clone()), or none."
        )


def options_of(optimizers: Sequence[Any]) -> dict[str, Any]:
    """Return the classes and the options of plain optimizers, keyed by their names in messages."""
    options = {
        f"{type(o).__name__}'s {option} (group {i})": value
        for o in optimizers
        for i, group in enumerate(groups_of(o))
        for option, value in group.items()
        if option != "params"
    }
    return {"the optimizers": [type(o) for o in optimizers], **options}


def _is_live(optimizer: Any) -> bool:
    if isinstance(optimizer, (torch.optim.Optimizer, list, tuple)) or hasattr(optimizer, "optimizer"):
        return True
    return hasattr(optimizer, "step") and not isinstance(optimizer, type)


def _unwrapped(optimizer: Any, who: str) -> list[Any]:
    """Return the optimizers inside the wrappers of known libraries; keep anything else that has its own ``step``."""
    found = []
    for one in optimizer if isinstance(optimizer, (list, tuple)) else [optimizer]:
        inner = one
        while hasattr(inner, "optimizer") and (is_hosted(inner) or not _acts_itself(inner)):
            inner = inner.optimizer
        if not (_steps_itself(inner) or (hasattr(inner, "optimizer") and hasattr(inner, "step"))):
            raise TypeError(
                f"optimizer is {described(optimizer)}. Pass the torch.optim.Optimizer that steps {who}, a list of "
                "them, or a callable params -> Optimizer."
            )
        found.append(inner)
    return found


def _steps_itself(optimizer: Any) -> bool:
    """Return whether ``optimizer`` has a ``step`` of its own, not one that ``__getattr__`` finds on another object."""
    own = hasattr(type(optimizer), "step") or "step" in getattr(optimizer, "__dict__", ())
    return own and not isinstance(optimizer, type)


def _acts_itself(wrapper: Any) -> bool:
    """Return whether ``step`` or ``zero_grad`` of a wrapper is another than that of the optimizer inside."""
    inner = wrapper.optimizer
    same = all(getattr(wrapper, n, None) in (None, getattr(inner, n, None)) for n in ("step", "zero_grad"))
    return _steps_itself(wrapper) or not same


def _from_spec(spec: Any, params: Sequence[Tensor], who: str) -> list[Any]:
    if isinstance(spec, type):
        raise TypeError(
            f"optimizer is {described(spec)}. Pass the torch.optim.Optimizer that steps {who}, or, for "
            f"fresh state in every call, functools.partial({spec.__name__}, lr=1e-4), say."
        )
    if not callable(spec):
        return _unwrapped(spec, who)
    if not params:
        raise ValueError(
            f"An optimizer given as a callable steps the parameters that require grad, and none of {who}'s does. Build "
            "the loss while they are trainable, or pass the live optimizer."
        )
    try:
        return _unwrapped(spec(params), who)
    except TypeError as error:
        raise TypeError(
            f"optimizer is {described(spec)}, which was called with {who}'s parameters, as a callable params -> "
            f"Optimizer is, and failed: {error}. To pass the optimizer that you have: (D, opt_D, ...)."
        ) from error


def refuse_steps(optimizers: Iterable[torch.optim.Optimizer], undo: Undo) -> None:
    """Make torch's own optimizers raise, until ``undo``, if a loss calls their ``step``, before anything has moved."""
    # This does what register_step_pre_hook does, in a tenth of the time.
    hooks: list[dict[Any, Any]] = [o._optimizer_step_pre_hooks for o in optimizers]

    def put_back() -> None:
        for of_one in hooks:
            of_one.pop(_refuse_step, None)

    undo.later(put_back)
    for of_one in hooks:
        of_one[_refuse_step] = _refuse_step


def _refuse_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    if is_unrolling():
        raise ValueError(
            f"A loss calls backward() and step() of the {type(optimizer).__name__} itself. Return "
            "the sum of all terms instead: the unroll takes the steps."
        )
