"""Adopt a live optimizer: its hyperparameters and state as they are now, as rules and blocks."""

import inspect
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from .adadelta import Adadelta
from .adafactor import Adafactor
from .adagrad import Adagrad
from .adam import Adam, AdamW
from .adamax import Adamax
from .asgd import ASGD
from .block import Block, join
from .muon import Muon
from .nadam import NAdam
from .radam import RAdam
from .rmsprop import RMSprop
from .rprop import Rprop
from .rule import Scalar, UpdateRule
from .sgd import SGD

RULES: dict[type[torch.optim.Optimizer], Any] = {
    getattr(torch.optim, rule.__name__): rule
    for rule in (
        Adadelta,
        Adafactor,
        Adagrad,
        Adam,
        Adamax,
        AdamW,
        ASGD,
        Muon,
        NAdam,
        RAdam,
        RMSprop,
        Rprop,
        SGD,
    )
    # Muon came with torch 2.9.
    if hasattr(torch.optim, rule.__name__)
}


def read(optimizers: Sequence[torch.optim.Optimizer], params: Sequence[Tensor]) -> list[Block]:
    """Where an unroll starts: copies of ``params``, and the state that the optimizers hold for them.

    Args:
        optimizers: each moves some of the parameters.
        params: the parameters to unroll; every one belongs to some optimizer.

    Returns:
        Blocks; the index of a block counts in ``params``.
    """
    position = {id(p): i for i, p in enumerate(params)}
    blocks: list[Block] = []
    for optimizer in optimizers:
        kind = rule_of(optimizer)
        names = [f.name for f in fields(kind)]
        for group in optimizer.param_groups:
            # A rule's fields have the names of the optimizer's options, with defaults for those that came later.
            rule = kind(**{name: group[name] for name in names if name in group})
            # One flat vector needs one dtype, one device, and the same numbers (a step count) throughout.
            together: dict[Any, list[Block]] = {}
            for p in group["params"]:
                if id(p) not in position:
                    continue
                i = position[id(p)]
                state = _read_state(optimizer, rule, p)
                numbers = tuple("tensor" if isinstance(v, Tensor) else v and float(v) for v in state)
                key = (p.dtype, p.device, numbers) if rule.elementwise else i
                together.setdefault(key, []).append(Block(rule, (i,), (p.shape,), p.detach().clone(), state))
            blocks += map(join, together.values())
    return blocks


def rule_of(optimizer: torch.optim.Optimizer) -> Any:
    """The rule, a dataclass, that does what the optimizer's ``step`` does.

    Raises:
        TypeError: no rule is known for this class, or something changes what its ``step`` does.
        ValueError: an option that no rule honours.
    """
    kind = type(optimizer)
    name = kind.__name__
    known = ", ".join(sorted(cls.__name__ for cls in RULES))
    step = inspect.unwrap(kind.step)
    match = [cls for cls in kind.__mro__ if cls in RULES and inspect.unwrap(cls.step) is step]
    if not match:
        raise TypeError(
            f"No update rule for the optimizer {name}. Known: {known}. Step the discriminator with one of them."
        )
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        raise TypeError(
            f"This {name} has step hooks, which an unroll cannot differentiate. Remove them, and pass what they do as "
            "grad_transform= (before the step) or param_transform= (after it)."
        )
    for group in optimizer.param_groups:
        learned = [k for k, v in group.items() if isinstance(v, Tensor) and v.requires_grad]
        if learned:
            raise ValueError(
                f"{name} has {learned} that require grad; an unroll treats hyperparameters as constants. Detach them."
            )
        for p in group["params"]:
            if p.is_complex():
                raise ValueError(
                    f"{name} owns a complex parameter of shape {tuple(p.shape)}; only real ones are unrolled."
                )
    return RULES[match[0]]


def _read_state(optimizer: torch.optim.Optimizer, rule: UpdateRule, param: Tensor) -> Any:
    fresh = rule.init(param.detach())
    stored = optimizer.state.get(param)
    if not stored:
        return fresh
    values = {
        name: _adopt(name, stored.get(name), initial, param, optimizer) for name, initial in fresh._asdict().items()
    }
    return type(fresh)(**values)


def _adopt(name: str, value: Any, initial: Any, param: Tensor, optimizer: torch.optim.Optimizer) -> Any:
    """The optimizer's own entry, checked against what the rule expects."""
    if initial is None and value is None:
        return None
    if isinstance(initial, float):
        return float(value)
    if isinstance(initial, Scalar):
        return Scalar(value.detach()) if isinstance(value, Tensor) else Scalar.of(value)
    shape = param.shape if initial is None else initial.shape
    if not isinstance(value, Tensor) or value.shape != shape or value.device != param.device:
        given = f"{tuple(value.shape)} on {value.device}" if isinstance(value, Tensor) else repr(value)
        raise ValueError(
            f"{type(optimizer).__name__} keeps {name} = {given} for a parameter of shape {tuple(param.shape)} on "
            f"{param.device}, where {tuple(shape)} is expected. Load a state_dict that belongs to this discriminator."
        )
    return value.detach()
