"""An optimizer taken apart into tensors and the rest, and put together again around other tensors."""

import copy
import pickle
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

Optimizer = torch.optim.Optimizer


class _Hole(NamedTuple):
    """Where a tensor of the state stood."""

    position: int


class _Count(NamedTuple):
    """A number that the optimizer keeps as a tensor."""

    value: float
    dtype: torch.dtype
    device: torch.device


class Frozen:
    """All that a step goes by but the state's tensors: options, counts, caches. Compares by content."""

    def __init__(self, content: Any) -> None:
        self.content = content
        self.key = pickle.dumps(content)


def parameters(optimizer: Optimizer) -> list[Tensor]:
    """Everything that the optimizer steps, in the order of its groups."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def take_apart(optimizer: Optimizer, params: Sequence[Tensor]) -> tuple[Frozen, list[Tensor]]:
    """The rest of the optimizer's state, and its floating-point tensors.

    Args:
        optimizer: left as it is. Optimizers that it holds, as Lookahead does, are taken apart with it.
        params: what it steps.

    Raises:
        TypeError: it holds modules or parameters, which a step could change.
    """
    parts = []
    for one in _family(optimizer):
        state = [dict(one.state.get(p, {})) for p in params]
        common = {k: v for k, v in one.state.items() if not isinstance(k, Tensor)}
        groups = [{k: v for k, v in group.items() if k != "params"} for group in one.param_groups]
        parts.append((state, common, groups, _attributes(one)))
    paths, spec = pytree.tree_flatten_with_path([(state, common) for state, common, _, _ in parts])
    leaves = [leaf for _, leaf in paths]
    tensors: list[Tensor] = []
    for i, (path, leaf) in enumerate(paths):
        if isinstance(leaf, Tensor) and _is_count(path, leaf):
            leaves[i] = _Count(leaf.item(), leaf.dtype, leaf.device)
        elif isinstance(leaf, Tensor) and leaf.is_floating_point():
            leaves[i] = _Hole(len(tensors))
            tensors.append(leaf.detach())
    held = pytree.tree_unflatten(leaves, spec)
    frozen = [(*states, *rest) for states, (_, _, *rest) in zip(held, parts, strict=True)]
    return Frozen(copy.deepcopy(frozen)), tensors


def _is_count(path: Any, leaf: Tensor) -> bool:
    """Torch's own optimizers keep the number of updates as a tensor, and read it out in their steps."""
    return leaf.numel() == 1 and isinstance(path[-1], pytree.MappingKey) and path[-1].key == "step"


def put_together(
    optimizer: Optimizer, frozen: Frozen, params: Sequence[Tensor], tensors: Sequence[Tensor]
) -> Optimizer:
    """An optimizer like the given one that steps ``params`` from the given state."""

    def put(leaf: Any) -> Any:
        if isinstance(leaf, _Count):
            return torch.tensor(leaf.value, dtype=leaf.dtype, device=leaf.device)
        return tensors[leaf.position] if isinstance(leaf, _Hole) else copy.deepcopy(leaf)

    content = pytree.tree_map(put, frozen.content, is_leaf=lambda leaf: isinstance(leaf, (_Hole, _Count)))
    family = _family(optimizer)
    replicas = {id(one): object.__new__(type(one)) for one in family}
    # Lookahead and the optimizer inside it share one list of groups.
    made: dict[int, list[dict[str, Any]]] = {}
    for one, (state, common, groups, attributes) in zip(family, content, strict=True):
        replica = replicas[id(one)]
        vars(replica).update({k: replicas.get(id(v), v) for k, v in vars(one).items()})
        # A scheduler wraps `step` on the live instance.
        vars(replica).pop("step", None)
        vars(replica).update(attributes)
        remaining = iter(params)
        for group, live in zip(groups, one.param_groups, strict=True):
            group["params"] = [next(remaining) for _ in live["params"]]
        replica.param_groups = made.setdefault(id(one.param_groups), groups)
        replica.state = defaultdict(dict, common)
        replica.state.update({p: s for p, s in zip(params, state, strict=True) if s})
    return replicas[id(optimizer)]


def _family(optimizer: Optimizer) -> list[Optimizer]:
    held = [v for v in vars(optimizer).values() if isinstance(v, Optimizer)]
    return [optimizer, *(one for inner in held for one in _family(inner))]


def _attributes(optimizer: Optimizer) -> dict[str, Any]:
    """What the optimizer's author keeps on the instance, as far as it is plain data."""
    plain = (bool, int, float, complex, str, type(None), Tensor)
    found = {}
    for name, value in vars(optimizer).items():
        if (
            name.startswith("_")
            or name in ("state", "param_groups", "defaults", "step")
            or isinstance(value, Optimizer)
        ):
            continue
        leaves = pytree.tree_leaves(value)
        if any(isinstance(leaf, (nn.Module, nn.Parameter)) for leaf in leaves):
            raise TypeError(f"it holds modules or parameters that a step may change, in .{name}")
        if all(isinstance(leaf, plain) for leaf in leaves) and not _keyed_by_tensors(value):
            found[name] = value
    return found


def _keyed_by_tensors(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(k, Tensor) for k in value)
