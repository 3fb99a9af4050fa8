"""Find the optimizers that an optimizer or a wrapper holds, and the parameters that it steps."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..live.restore import refill
from ..live.snapshot import parts
from ..live.undo import Undo


def stepped(stepper: Any) -> list[Tensor]:
    """Return all parameters that an optimizer or a wrapper steps, in the order of the groups, each once."""
    every = [p for one in family(stepper) for group in groups_of(one) for p in group["params"]]
    return list({id(p): p for p in every}.values())


def groups_of(stepper: Any) -> list[dict[str, Any]]:
    """Return the parameter groups with their options; a wrapper may have none of its own."""
    return list(getattr(stepper, "param_groups", ()))


def family(stepper: Any) -> list[Any]:
    """Return the optimizer or wrapper, and the optimizers that it holds."""
    found = [stepper]
    if type(stepper).__module__.startswith("torch.optim."):
        # Torch's own optimizers hold no others.
        return found
    for one in found:
        held = vars(one).values() if hasattr(one, "__dict__") else parts(one) or ()
        for value in held:
            if isinstance(value, (list, tuple)):
                inner: Iterable[Any] = value
            else:
                inner = value.values() if isinstance(value, dict) else (value,)
            known = {id(f) for f in found}
            found += [o for o in inner if isinstance(o, torch.optim.Optimizer) and id(o) not in known]
    return found


def state_tensors(steppers: Sequence[Any]) -> list[Tensor]:
    """Return the tensors that optimizers, and those that they hold, keep for their parameters."""
    optimizers = [o for one in steppers for o in family(one) if isinstance(getattr(o, "state", None), dict)]
    kept = [entry for o in optimizers for entry in o.state.values() if isinstance(entry, dict)]
    return [t for entry in kept for t in entry.values() if isinstance(t, Tensor)]


def keep_options(steppers: Sequence[Any], undo: Undo) -> Callable[[], None]:
    """Let ``undo`` restore the optimizers' options, and return a function that raises ValueError if one has changed."""
    before = [(g, dict(g)) for one in steppers for o in family(one) for g in groups_of(o)]
    # A learning rate may be a tensor.
    tensors = [(k, t, t._version, t.clone()) for _, old in before for k, t in old.items() if isinstance(t, Tensor)]

    def check() -> None:
        changed = [k for g, old in before for k in old if g.get(k, before) is not old[k]]
        changed += [k for k, t, version, _ in tensors if t._version != version]
        if changed:
            raise ValueError(
                f"A loss changes options of D's optimizer: {changed}. An unroll takes them as they are at the "
                "call: change them in the training loop, by a scheduler say."
            )

    def put_back() -> None:
        for group, old in before:
            refill(group, old)
        for _, t, version, value in tensors:
            if t._version != version:
                t.data.copy_(value)

    undo.later(put_back)
    return check


def keep_flags(params: Iterable[Tensor], undo: Undo) -> None:
    """Let parameters require grad until that is undone."""
    before = [(p, p.requires_grad) for p in params]

    def put_back() -> None:
        for p, flag in before:
            p.requires_grad_(flag)

    undo.later(put_back)
    for p, _ in before:
        p.requires_grad_(True)


def keep_entries(steppers: Sequence[Any], undo: Undo) -> None:
    """Let ``undo`` remove state that the optimizers do not have now: a look at a parameter's state may create it."""
    before = [(s, len(s)) for one in steppers for o in family(one) if isinstance(s := getattr(o, "state", None), dict)]

    def put_back() -> None:
        for state, entries in before:
            while len(state) > entries:
                state.popitem()

    undo.later(put_back)
