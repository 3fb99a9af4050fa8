"""Read the state that a live optimizer keeps for a parameter, in the form that a rule uses."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .rule import Scalar, UpdateRule


def counts_of(optimizer: torch.optim.Optimizer, params: Sequence[Tensor]) -> dict[int, float]:
    """Return the numbers that an optimizer keeps as tensors, by the tensors' ids, with one transfer per device."""
    stored = [
        t for p in params for t in (optimizer.state.get(p) or {}).values() if isinstance(t, Tensor) and not t.dim()
    ]
    found: dict[int, float] = {}
    for key in {(t.device, t.dtype) for t in stored}:
        these = [t for t in stored if (t.device, t.dtype) == key]
        found.update(zip(map(id, these), torch.stack(these).tolist(), strict=True))
    return found


def state_of(optimizer: torch.optim.Optimizer, rule: UpdateRule, param: Tensor, counts: dict[int, float]) -> Any:
    """Return the state for one parameter; ``counts`` are the numbers that ``counts_of`` has read."""
    fresh = rule.init(param.detach())
    for name, initial in fresh._asdict().items():
        if isinstance(initial, Tensor) and not (
            initial.is_floating_point() and (initial.shape == param.shape or not rule.elementwise)
        ):
            raise ValueError(
                f"The rule {type(rule).__name__} starts with {name} = {tuple(initial.shape)} ({initial.dtype}) for a "
                f"parameter of shape {tuple(param.shape)}. Its tensors have floating-point numbers and, if it is "
                "elementwise, the parameter's shape; a count is a plain number."
            )
    stored = optimizer.state.get(param)
    if not stored:
        return fresh
    values = {
        name: _adopt(name, stored.get(name), initial, param, optimizer, counts)
        for name, initial in fresh._asdict().items()
    }
    return rule.adopt(type(fresh)(**values))


def _adopt(
    name: str, value: Any, initial: Any, param: Tensor, optimizer: torch.optim.Optimizer, counts: dict[int, float]
) -> Any:
    """Return an entry of the optimizer's own state, after a check against the rule's initial entry."""
    if initial is None and value is None:
        return None
    if isinstance(initial, (int, float)) and value is not None:
        return type(initial)(counts[id(value)] if id(value) in counts else float(value))
    if isinstance(initial, Scalar):
        return Scalar(value.detach()) if isinstance(value, Tensor) else Scalar.of(value)
    if isinstance(value, (int, float)):
        return param.new_tensor(float(value))
    shape, dtype = (initial.shape, initial.dtype) if isinstance(initial, Tensor) else (param.shape, param.dtype)
    if not isinstance(value, Tensor) or (value.shape, value.dtype, value.device) != (shape, dtype, param.device):
        given = f"{tuple(value.shape)} ({value.dtype}) on {value.device}" if isinstance(value, Tensor) else repr(value)
        raise ValueError(
            f"{type(optimizer).__name__} keeps {name} = {given} for a parameter of shape {tuple(param.shape)} on "
            f"{param.device}, where {tuple(shape)} ({dtype}) is expected. {_remedy(value, shape)}"
        )
    return value.detach()


def _remedy(value: Any, shape: torch.Size) -> str:
    if isinstance(value, Tensor) and value.shape == shape:
        return (
            "D was cast or moved after this optimizer had stepped it. Do that before the optimizer is made, or let it "
            "follow: opt_D.load_state_dict(opt_D.state_dict())."
        )
    return "Load a state_dict that belongs to these parameters."
