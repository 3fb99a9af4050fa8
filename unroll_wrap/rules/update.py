"""One optimizer step on every block, and its pullback. Knows gradients, not where they come from."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .block import Block, Layout, layout, pack, regroup, split, unpack

GradTransform = Callable[[list[Tensor]], Sequence[Tensor]]
ParamTransform = Callable[[Tensor], Tensor]


class Update(NamedTuple):
    """(θ, g, state) → (θ', state') with its graph, which goes on into that of the gradients.

    Attributes:
        old: θ and state, as leaves.
        new: θ' and state'.
        entry: the layout of the blocks that the update was given.
    """

    old: list[Block]
    new: list[Block]
    entry: Layout

    def following(self) -> list[Block]:
        """The new blocks without their graph: where the next step starts."""
        return [_each(b, Tensor.detach) for b in self.new]

    def leaves(self) -> list[Tensor]:
        """θ and state before the update."""
        return [t for b in self.old for t in _tensors(b) if isinstance(t, Tensor)]

    def with_cotangent(self, cotangent: Sequence[Block]) -> list[tuple[Tensor, Tensor]]:
        """The new tensors that matter to the result, each with its cotangent."""
        return [
            (out, bar)
            for block, bars in zip(self.new, cotangent, strict=True)
            for out, bar in zip(_tensors(block), _tensors(bars), strict=True)
            if isinstance(out, Tensor) and isinstance(bar, Tensor) and out.requires_grad
        ]

    def cotangent(self, of_leaves: Sequence[Tensor | None], of_params: Sequence[Tensor | None]) -> list[Block]:
        """The cotangent of what the update was given.

        Args:
            of_leaves: for each of ``leaves``, by way of the rule.
            of_params: for each parameter, by way of its gradient.
        """
        found = iter(of_leaves)
        blocks = add([_each(b, lambda _: next(found)) for b in self.old], of_params)
        return blocks if layout(blocks) == self.entry else regroup(blocks, self.entry)


def update(
    blocks: Sequence[Block],
    grads: Sequence[Tensor | None],
    grad_transform: GradTransform | None,
    param_transform: ParamTransform | None,
    differentiable: bool,
) -> Update:
    """Step every parameter that has a gradient; as in torch, one without is left alone, its step count too.

    Args:
        blocks: θ and state.
        grads: one for each parameter, with its graph, or None.
        grad_transform: from the list of the gradients there are to a list of the same length, before the rule.
        param_transform: from an updated parameter to a parameter, after the rule.
        differentiable: keep the graph.
    """
    parts = split(blocks, [g is not None for g in grads])
    leaf = _leaf if differentiable else Tensor.detach
    old = [_each(b, leaf) for b in parts]
    with torch.set_grad_enabled(differentiable):
        if grad_transform:
            grads = _transformed(grads, grad_transform)
        new = []
        for block in old:
            g = _packed(block, grads)
            if g is not None:
                params, state = block.rule.update(block.params, g, block.state)
                block = block._replace(params=params, state=state)
            if param_transform:
                block = block._replace(params=pack([param_transform(p) for p in unpack(block.params, block.shapes)]))
            new.append(block)
    return Update(old, new, layout(blocks))


def _transformed(grads: Sequence[Tensor | None], transform: GradTransform) -> list[Tensor | None]:
    present = [g for g in grads if g is not None]
    changed = list(transform(present))
    if [g.shape for g in changed] != [g.shape for g in present]:
        raise ValueError(
            f"grad_transform got {len(present)} gradients and returned {len(changed)}, or other shapes. Return one "
            "gradient for each, in order."
        )
    new = iter(changed)
    return [None if g is None else next(new) for g in grads]


def _packed(block: Block, grads: Sequence[Tensor | None]) -> Tensor | None:
    """The block's part of a list with one entry for each parameter; zeros for None, unless all are."""
    parts = [grads[i] for i in block.index]
    some = next((g for g in parts if g is not None), None)
    if some is None:
        return None
    return pack([some.new_zeros(s) if g is None else g for g, s in zip(parts, block.shapes, strict=True)])


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()


def _tensors(block: Block) -> list[Any]:
    return [block.params, *block.state]


def _each(block: Block, function: Callable[[Tensor], Tensor | None]) -> Block:
    """The block with ``function`` applied to its tensors; numbers stay."""

    def on(value: Any) -> Any:
        return function(value) if isinstance(value, Tensor) else value

    return block._replace(params=on(block.params), state=type(block.state)(*map(on, block.state)))


def add(blocks: Sequence[Block], grads: Sequence[Tensor | None]) -> list[Block]:
    """Cotangents with a gradient of each parameter added to the cotangent of θ; None is zero."""
    added = []
    for b in blocks:
        packed = _packed(b, grads)
        if packed is not None:
            b = b._replace(params=packed if b.params is None else b.params + packed)
        added.append(b)
    return added


def zero_cotangent(blocks: Sequence[Block]) -> list[Block]:
    """No cotangent for anything in these blocks."""
    return [_each(b, lambda _: None) for b in blocks]


def plus(one: Sequence[Block], other: Sequence[Block]) -> list[Block]:
    """The sum of two cotangents of θ in the same layout; the second has none for the state."""
    return [
        a if b.params is None else a._replace(params=b.params if a.params is None else a.params + b.params)
        for a, b in zip(one, other, strict=True)
    ]
