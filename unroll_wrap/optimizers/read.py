"""Read a live optimizer: turn its current hyperparameters and state into rules and blocks."""

import logging
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from itertools import compress
from operator import is_
from typing import Any

import torch
from torch import Tensor

from .block import Block, join
from .family import family, groups_of, stepped
from .rule import UpdateRule
from .rules.a2grad import A2GradExp, A2GradInc, A2GradUni
from .rules.adadelta import Adadelta
from .rules.adafactor import Adafactor
from .rules.adagrad import Adagrad
from .rules.adam import Adam, AdamW
from .rules.adamax import Adamax
from .rules.asgd import ASGD
from .rules.muon import Muon
from .rules.nadam import NAdam
from .rules.radam import RAdam
from .rules.rmsprop import RMSprop
from .rules.rprop import Rprop
from .rules.sgd import SGD
from .stock import KNOWN, path, plain_rule
from .stored import counts_of, state_of
from .traced.traced import Traced

RULES: dict[str, Any] = {
    "torch.optim.Adafactor": Adafactor,
    "torch.optim.Muon": Muon,
    "torch.optim._adafactor.Adafactor": Adafactor,
    "torch.optim._muon.Muon": Muon,
    "torch.optim.adadelta.Adadelta": Adadelta,
    "torch.optim.adagrad.Adagrad": Adagrad,
    "torch.optim.adam.Adam": Adam,
    "torch.optim.adamax.Adamax": Adamax,
    "torch.optim.adamw.AdamW": AdamW,
    "torch.optim.asgd.ASGD": ASGD,
    "torch.optim.nadam.NAdam": NAdam,
    "torch.optim.radam.RAdam": RAdam,
    "torch.optim.rmsprop.RMSprop": RMSprop,
    "torch.optim.rprop.Rprop": Rprop,
    "torch.optim.sgd.SGD": SGD,
    "torch_optimizer.a2grad.A2GradExp": A2GradExp,
    "torch_optimizer.a2grad.A2GradInc": A2GradInc,
    "torch_optimizer.a2grad.A2GradUni": A2GradUni,
}

REFUSED = {
    "torch.optim.lbfgs.LBFGS": "it evaluates the loss as often as its line search asks, which is no update rule",
    "torch.optim.sparse_adam.SparseAdam": "it takes sparse gradients, which have no second derivative",
    "torch.distributed.optim.zero_redundancy_optimizer.ZeroRedundancyOptimizer": "each process holds the state of some "
    "parameters only",
    "torch_optimizer.adahessian.Adahessian": "it differentiates the gradients' own graph, which an unroll takes apart",
}

logger = logging.getLogger("unroll_wrap")

_said: set[int] = set()


class Traces(dict[int, Traced]):
    """The traced rules of optimizers that have no rule of their own, by the id of the optimizer. A copy is empty."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Traces":
        return Traces()

    def __reduce__(self) -> Any:
        return Traces, ()


def read(
    optimizers: Sequence[Any],
    params: Sequence[Tensor],
    traces: Traces | None = None,
    rules: Sequence[Any] | None = None,
) -> list[Block]:
    """Return the start of an unroll: copies of ``params``, and the state that the optimizers hold for them.

    Args:
        optimizers: plain optimizers, each of which moves some of the parameters.
        params: the parameters to unroll, whose positions are the ``index`` of the blocks.
        traces: the traced rules of earlier calls.
        rules: what ``rule_of`` returns for each optimizer, if the caller knows that.

    Raises:
        ValueError: a rule needs options that the optimizer lacks, or state does not fit its parameter.
    """
    position = {id(p): i for i, p in enumerate(params)}
    blocks: list[Block] = []
    kinds = [rule_of(o) for o in optimizers] if rules is None else rules
    for optimizer, kind in zip(optimizers, kinds, strict=True):
        if kind is None:
            blocks.append(_traced(optimizer, position, Traces() if traces is None else traces))
            continue
        names = [f.name for f in fields(kind)]
        required = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
        for group in optimizer.param_groups:
            if missing := sorted(required - set(group)):
                raise ValueError(
                    f"The rule {kind.__name__} asks for the options {missing}, which this {type(optimizer).__name__} "
                    "lacks. A rule's fields have the names of the optimizer's options; give the others a default."
                )
            # An older version of the optimizer may lack options whose fields have a default.
            rule = kind(**{name: group[name] for name in names if name in group})
            counts = counts_of(optimizer, group["params"])
            # One flat vector needs one dtype, one device, and the same numbers (a step count) throughout.
            together: dict[Any, list[Block]] = {}
            for p in group["params"]:
                if id(p) not in position:
                    continue
                i = position[id(p)]
                state = state_of(optimizer, rule, p, counts)
                numbers = tuple("tensor" if isinstance(v, Tensor) else v and float(v) for v in state)
                key = (p.dtype, p.device, numbers) if rule.elementwise else i
                together.setdefault(key, []).append(Block(rule, (i,), (p.shape,), p.detach().clone(), state))
            blocks += map(join, together.values())
    return blocks


def _traced(stepper: Any, position: dict[int, int], traces: Traces) -> Block:
    live = stepped(stepper)
    moved = [id(p) in position for p in live]
    rule = traces.get(id(stepper))
    if rule is None or rule.stepper is not stepper or rule.moved != moved or not all(map(is_, rule.live, live)):
        rule = traces[id(stepper)] = Traced(stepper, live, moved)
        if id(stepper) not in _said:
            logger.info(
                "%s has no update rule of its own: its step() is traced, anew for each step count that it sees.",
                type(stepper).__name__,
            )
            _said.add(id(stepper))
    params = list(compress(live, moved))
    return rule.block(tuple(position[id(p)] for p in params), params)


def rule_of(stepper: Any) -> Any:
    """Return the rule, a dataclass, that computes what ``step`` does; None if ``step`` has to be traced.

    Raises:
        TypeError: the optimizer cannot be unrolled.
        ValueError: the optimizer has an option or a parameter that no rule supports.
    """
    if (rule := plain_rule(stepper, RULES)) is not None:
        for group in stepper.param_groups:
            _check_group(type(stepper).__name__, group)
        return rule
    for one in family(stepper):
        name = type(one).__name__
        if (reason := REFUSED.get(path(type(one)))) is not None:
            raise TypeError(f"{name} cannot be unrolled: {reason}. Step the discriminator with Adam, say.")
        for group in groups_of(one):
            _check_group(name, group)
    return None


def _check_group(name: str, group: dict[str, Any]) -> None:
    learned = [k for k, v in group.items() if isinstance(v, Tensor) and v.requires_grad]
    if learned:
        raise ValueError(
            f"{name} has {learned} that require grad; an unroll treats hyperparameters as constants. Detach them."
        )
    for p in group["params"]:
        if p.is_complex():
            raise ValueError(f"{name} owns a complex parameter of shape {tuple(p.shape)}; only real ones are unrolled.")
        if getattr(p, "_post_accumulate_grad_hooks", None):
            raise ValueError(
                f"{name} owns a parameter of shape {tuple(p.shape)} with a hook that runs once its .grad is there "
                "(register_post_accumulate_grad_hook), which in an unroll it never is. Remove the hook, and pass "
                "what it does as grad_transform=, or use register_hook."
            )


def register_rule(optimizer: type[torch.optim.Optimizer], rule: type[UpdateRule]) -> None:
    """Unroll every optimizer of the class ``optimizer`` by ``rule`` from now on.

    Args:
        optimizer: the class of the optimizer that steps the discriminator.
        rule: a frozen dataclass whose fields have the names of the optimizer's options.

    Raises:
        TypeError: ``optimizer`` or ``rule`` is not such a class.

    Examples:
        >>> from unroll_wrap.optimizers.rules.sgd import SGD
        >>> class MySGD(torch.optim.SGD):  # a class with a step() of its own that computes what SGD's does
        ...     def step(self, closure=None):
        ...         return super().step(closure)
        >>> unroll_wrap.register_rule(MySGD, SGD)
    """
    if not (isinstance(optimizer, type) and issubclass(optimizer, torch.optim.Optimizer)):
        raise TypeError(f"optimizer is {optimizer!r:.200}. Pass a class that derives from torch.optim.Optimizer.")
    if not (isinstance(rule, type) and issubclass(rule, UpdateRule) and is_dataclass(rule)):
        raise TypeError(f"rule is {rule!r}. Pass a class, a frozen dataclass that derives from UpdateRule.")
    RULES[path(optimizer)] = rule
    KNOWN.clear()
