"""Read off the user's own objects what their training step moves.

Nothing here is shared with the code of a call, because a check of a call must not rely on what the call itself found.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..live.snapshot import Snapshot

# The wrappers of these libraries step the optimizer inside, and do not change an update.
_HOSTS = ("accelerate", "ignite", "lightning", "lightning_fabric", "pytorch_lightning")


def modules_of(unrolled: Any) -> list[nn.Module]:
    """Return every module of the discriminator, each once."""
    roots = [root for _, root in _named_roots(unrolled.player)]
    return list({id(m): m for root in roots for m in root.modules()}.values())


def steppers_of(unrolled: Any) -> list[Any]:
    """Return the objects whose ``step`` training calls, built anew if the user passed a function of the parameters."""
    given: Any = unrolled.optimizer
    if callable(given) and not hasattr(given, "step"):
        frozen = set(map(id, unrolled.frozen))
        given = given([p for _, p in named_parameters(unrolled) if id(p) not in frozen])
    return stepping(given)


def stepping(given: Any) -> list[Any]:
    """Return the objects whose ``step`` training calls, inside the wrappers of known libraries."""
    found: list[Any] = []
    one: Any
    for one in given if isinstance(given, (list, tuple)) else [given]:
        while hasattr(one, "optimizer") and not _acts_itself(one):
            one = one.optimizer
        found.append(one)
    return found


def clears_itself(stepper: Any) -> bool:
    """Return whether ``zero_grad`` is not that of torch or of a known library, so that it may do anything."""
    return not _homes(getattr(stepper, "zero_grad", None)) <= {"torch", *_HOSTS}


def zeros_in(params: Iterable[Tensor]) -> list[bool]:
    """Return for each parameter whether its gradient is zeros, as ``zero_grad(set_to_none=False)`` leaves it."""
    return [p.grad is not None and not p.grad.any() for p in params]


def clear(steppers: list[Any], params: list[Tensor], zeros: list[bool]) -> None:
    """Do what a loop does before ``backward()``: leave no gradients, or zeros, or call a ``zero_grad`` of its own."""
    own = [one for one in steppers if clears_itself(one)]
    theirs = _held_by(own)
    for p, zero in zip(params, zeros, strict=True):
        if id(p) not in theirs:
            p.grad = torch.zeros_like(p) if zero else None
    for one in own:
        one.zero_grad()


def check_clearing(steppers: Sequence[Any], params: Sequence[Tensor], steps: int) -> str | None:
    """Raise if a ``zero_grad`` of the user's own would leave gradients in one of the coming steps.

    It may clear them every second time, say, and a first call that was proven says nothing of later ones. If it changes
    anything else, which later steps may go by, that is returned in words.

    Raises:
        ValueError: it would.
    """
    own = [one for one in steppers if clears_itself(one)]
    if not own:
        return None
    more: str | None = None
    held = _held_by(own)
    mine = [p for p in params if id(p) in held]
    with Snapshot([*own, *mine]):
        for k in range(steps):
            for p in mine:
                p.grad = torch.ones_like(p)
            before, values = Snapshot(own), [p.detach().clone() for p in mine]
            for one in own:
                one.zero_grad()
            name = type(own[0]).__name__
            if what := next(before.changes(), None):
                more = f"zero_grad() of the {name} changes {what}"
            elif not all(map(torch.equal, values, mine)):
                more = f"zero_grad() of the {name} changes parameters"
            if any(p.grad is not None and p.grad.any() for p in mine):
                raise ValueError(
                    f"zero_grad() of the {name} leaves gradients at inner step {k}, and the loop's "
                    "step would add to them. Call the loss where zero_grad() clears them, with as many steps as it "
                    "does so; or let d_loss be the sum of all terms, and zero_grad() clear them always."
                )
            for p in mine:
                p.grad = torch.zeros_like(p)
            for one in own if k + 1 < steps else ():
                one.step()
    return more


def moved_by(steppers: list[Any], unrolled: Any) -> dict[str, Tensor]:
    """Return D's parameters that these objects step, by name, except frozen ones that were never stepped."""
    held = _held_by(steppers)
    stepped = {id(p) for o in _optimizers_in(steppers) for p, state in getattr(o, "state", {}).items() if state}
    frozen = {id(p) for p in unrolled.frozen if not p.requires_grad and p.grad is None} - stepped
    return {name: p for name, p in named_parameters(unrolled) if id(p) in held - frozen}


def _held_by(steppers: list[Any]) -> set[int]:
    return {id(p) for o in _optimizers_in(steppers) for group in o.param_groups for p in group["params"]}


def _optimizers_in(steppers: list[Any]) -> list[Any]:
    return [o for o in Snapshot(steppers).objects() if hasattr(o, "param_groups")]


def named_parameters(unrolled: Any) -> list[tuple[str, Tensor]]:
    """Return the discriminator's parameters with their names, each once."""
    found: dict[int, tuple[str, Tensor]] = {}
    for prefix, root in _named_roots(unrolled.player):
        for name, p in root.named_parameters():
            found.setdefault(id(p), (prefix + name, p))
    return list(found.values())


def _named_roots(discriminator: Any) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(discriminator, nn.Module):
        yield "", discriminator
        return
    roots = discriminator.items() if isinstance(discriminator, Mapping) else enumerate(discriminator)
    for key, root in roots:
        yield f"{key}.", root


def _acts_itself(wrapper: Any) -> bool:
    """Return whether ``step`` or ``zero_grad`` of a wrapper may do more than call that of the optimizer inside."""
    inner, hosts = wrapper.optimizer, {*_HOSTS} if isinstance(wrapper, torch.optim.Optimizer) else {"torch", *_HOSTS}
    return any(
        (method := getattr(wrapper, name, None)) != getattr(inner, name, None) and not _homes(method) <= hosts
        for name in ("step", "zero_grad")
    )


def _homes(method: Any) -> set[str]:
    """Return the packages whose code a method runs; ``functools.wraps`` makes a function pretend to another's."""
    found: set[str] = set()
    while method is not None:
        scope = getattr(getattr(method, "__func__", method), "__globals__", None)
        home = getattr(method, "__module__", None) if scope is None else scope.get("__name__")
        found.add(str(home).split(".")[0])
        method = getattr(method, "__wrapped__", None)
    return found
