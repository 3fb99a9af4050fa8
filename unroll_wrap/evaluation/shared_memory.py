"""Find tensors of a player that share memory, where a real step would move both."""

from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor

from ..call.batch import distinct
from ..live.memory import Span, has_memory, span
from .holders import Holders


class Memory(NamedTuple):
    """The addresses of all tensors of a player, and the pairs that overlap, of which none moves."""

    where: tuple[int, ...]
    shared: list[tuple[Tensor, Tensor]]


def check_memory(holders: Holders, who: str, checked: Memory | None = None) -> Memory:
    """Return where the tensors of ``who`` lie, and raise if a parameter that moves shares memory with another of them.

    An earlier result, ``checked``, is still valid if all addresses are the same.

    Raises:
        ValueError: a parameter that moves shares memory.
    """
    params, places = holders.params, holders.belongings.places
    # A legacy norm computes `weight` from `weight_orig` before each use.
    normed = {
        id(t)
        for t, container, key in places
        if isinstance(container, dict) and f"{key}_orig" in container.get("_parameters", ())
    }
    others = distinct([*holders.live, *holders.carried, *(t for t, _, _ in places)])
    tensors = [*params, *(t for t in others if id(t) not in normed and not any(t is p for p in params))]
    # Sparse tensors have no memory that a parameter's could overlap.
    where = tuple(t.data_ptr() if t.layout is torch.strided else 0 for t in tensors)
    if checked is not None and checked.where == where:
        return checked
    moving = set(map(id, params))
    shared: list[tuple[Tensor, Tensor]] = []
    for one, other in _overlapping(tensors):
        if id(one) in moving or id(other) in moving:
            raise ValueError(
                f"Two tensors of {who}, of shapes {tuple(one.shape)} and {tuple(other.shape)}, lie in "
                "the same memory: a real step moves both, and an unroll would move them apart. Share the "
                "parameter itself (b.weight = a.weight), or give each a copy (.clone())."
            )
        shared.append((one, other))
    return Memory(where, shared)


def _overlapping(tensors: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pairs of tensors that overlap in memory; each tensor that overlaps any other is in one of them."""
    furthest: tuple[Span, Tensor] | None = None  # Of the tensors so far, the one whose memory ends last.
    for at, t in sorted(((span(t), t) for t in tensors if has_memory(t)), key=itemgetter(0)):
        if furthest and furthest[0].memory == at.memory:
            if at.first < furthest[0].end:
                yield furthest[1], t
            if at.end <= furthest[0].end:
                continue
        furthest = at, t
