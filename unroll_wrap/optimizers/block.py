"""Blocks: the parameters that share a rule, joined into one flat vector.

The time of a step of a small net depends on the number of operator calls. The update of one vector takes a dozen of
them, and so would the update of each tensor alone.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .rule import UpdateRule

Layout = list[tuple[int, ...]]


class Block(NamedTuple):
    """Parameters that move together or, in the reverse sweep, their cotangents, where None stands for zero."""

    rule: UpdateRule  # The rule that updates the parameters.
    # The positions of the parameters in the unroll's list.
    index: tuple[int, ...]  # pyright: ignore[reportIncompatibleMethodOverride]
    shapes: tuple[torch.Size, ...]  # The shapes of the parameters.
    params: Any  # All parameters in one flat vector; a single parameter keeps its shape.
    # The rule's NamedTuple. Its tensors are packed in the same way, and its numbers hold for all parameters.
    state: Any


def pack(tensors: Sequence[Tensor]) -> Tensor:
    """Join tensors into one flat vector; a single tensor is returned as it is."""
    return tensors[0] if len(tensors) == 1 else torch.cat([t.reshape(-1) for t in tensors])


def unpack(packed: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Return views with the given shapes; this is the inverse of ``pack``."""
    if len(shapes) == 1:
        return [packed]
    parts = torch.split_with_sizes(packed, _sizes(tuple(shapes)))
    return [t if len(s) == 1 else t.view(s) for t, s in zip(parts, shapes, strict=True)]


@cache
def _sizes(shapes: tuple[torch.Size, ...]) -> list[int]:
    return [s.numel() for s in shapes]


class Joined(list["Tensor | None"]):
    """A list of tensors that are consecutive views of one flat vector."""

    def __init__(self, flat: Tensor, shapes: Sequence[torch.Size]) -> None:
        super().__init__(unpack(flat, shapes))
        self.flat = flat

    def packed(self, index: Sequence[int]) -> Tensor | None:
        """Return the flat vector if ``index`` asks for all tensors in order; None otherwise."""
        return self.flat if list(index) == list(range(len(self))) else None


def values_of(block: Block) -> list[Any]:
    """Return the packed parameters and every entry of the state, numbers included."""
    return [block.params, *block.state]


def each(block: Block, function: Callable[[Tensor], Tensor | None]) -> Block:
    """Apply ``function`` to all tensors of a block, and keep its numbers."""

    def on(value: Any) -> Any:
        return function(value) if isinstance(value, Tensor) else value

    return block._replace(params=on(block.params), state=type(block.state)(*map(on, block.state)))


def pairs(blocks: Sequence[Block], cotangent: Sequence[Block]) -> list[tuple[Tensor, Tensor | None]]:
    """Return every tensor of the blocks with its cotangent."""
    return [
        (t, bar)
        for b, bars in zip(blocks, cotangent, strict=True)
        for t, bar in zip(values_of(b), values_of(bars), strict=True)
        if isinstance(t, Tensor)
    ]


def layout(blocks: Sequence[Block]) -> Layout:
    """Return the positions of the parameters that each block holds."""
    return [b.index for b in blocks]


def split(blocks: Sequence[Block], used: Sequence[bool]) -> list[Block]:
    """Divide every block of which only some parameters are used; a joint rule stays whole and is told which."""
    told: list[Block] = []
    parts: Layout = []
    for b in blocks:
        if b.rule.joint:
            b = b._replace(rule=b.rule.for_used([used[i] for i in b.index]))
            parts.append(b.index)
        else:
            parts += filter(None, [tuple(i for i in b.index if used[i] is k) for k in (True, False)])
        told.append(b)
    return regroup(told, parts)


def regroup(blocks: Sequence[Block], new: Layout) -> list[Block]:
    """Return the same parameters in another layout."""
    whole, kept = {b.index: b for b in blocks}, set(new)
    single = {i: one for b in blocks if b.index not in kept for i, one in zip(b.index, _singles(b), strict=True)}
    return [whole[index] if index in whole else join([single[i] for i in index]) for index in new]


def _singles(block: Block) -> list[Block]:
    def parts(value: Any) -> list[Any]:
        return unpack(value, block.shapes) if isinstance(value, Tensor) else [value] * len(block.index)

    return [
        Block(block.rule, (i,), (shape,), params, type(block.state)(*state))
        for i, shape, params, *state in zip(block.index, block.shapes, *map(parts, values_of(block)), strict=True)
    ]


def join(singles: list[Block]) -> Block:
    """Join blocks of one parameter each into one block, with the rule and the numbers of the first."""
    first = singles[0]

    def all_of(values: Sequence[Any]) -> Any:
        some = next((v for v in values if isinstance(v, Tensor)), None)
        if some is None:
            return values[0]
        return pack([some.new_zeros(b.shapes[0]) if v is None else v for v, b in zip(values, singles, strict=True)])

    params, *state = map(all_of, zip(*map(values_of, singles), strict=True))
    index, shapes = tuple(b.index[0] for b in singles), tuple(b.shapes[0] for b in singles)
    return Block(first.rule, index, shapes, params, type(first.state)(*state))
