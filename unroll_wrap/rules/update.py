"""One optimizer step on every block, and its pullback. Knows gradients, not where they come from."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .block import Block, layout, pack, regroup, split, unpack

GradTransform = Callable[[list[Tensor]], Sequence[Tensor]]
ParamTransform = Callable[[Tensor], Tensor]


class Update(NamedTuple):
    """(θ, g, state) → (θ', state') with its graph.

    Attributes:
        old: θ and state, as leaves.
        g: gradients packed like ``old``, as leaves; None where a block had none.
        new: θ' and state'.
        entry: the layout of the blocks that the update was given.
    """

    old: list[Block]
    g: list[Tensor | None]
    new: list[Block]
    entry: list[tuple[int, ...]]

    def following(self) -> list[Block]:
        """The new blocks without their graph: where the next step starts."""
        return [_each(b, Tensor.detach) for b in self.new]

    def pullback(self, cotangent: Sequence[Block]) -> tuple[list[Block], list[Tensor | None]]:
        """From the cotangent of (θ', state') to the direct ones of (θ, state), and ḡ for every parameter.

        A parameter's entry in the second list is None where the update does not depend on its gradient.
        """
        pairs = [
            (out, bar)
            for block, bars in zip(self.new, cotangent, strict=True)
            for out, bar in zip(_tensors(block), _tensors(bars), strict=True)
            if isinstance(out, Tensor) and isinstance(bar, Tensor) and out.requires_grad
        ]
        given = [*(t for b in self.old for t in _tensors(b)), *self.g]
        inputs = [t for t in given if isinstance(t, Tensor)]
        found = torch.autograd.grad([o for o, _ in pairs], inputs, [b for _, b in pairs], allow_unused=True)
        bar_of = {id(t): bar for t, bar in zip(inputs, found, strict=True)}

        direct = [_each(b, lambda t: bar_of[id(t)]) for b in self.old]
        g_bars: dict[int, Tensor | None] = {}
        for block, g in zip(self.old, self.g, strict=True):
            g_bar = None if g is None else bar_of[id(g)]
            each = [None] * len(block.index) if g_bar is None else unpack(g_bar, block.shapes)
            g_bars.update(zip(block.index, each, strict=True))
        return direct, [g_bars[i] for i in sorted(g_bars)]


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
        grads: one for each parameter, or None.
        grad_transform: from the list of the gradients there are to a list of the same length, before the rule.
        param_transform: from an updated parameter to a parameter, after the rule.
        differentiable: keep the graph that ``pullback`` needs.
    """
    parts = split(blocks, [g is not None for g in grads])
    leaf = _leaf if differentiable else Tensor.detach
    old = [_each(b, leaf) for b in parts]
    packed = [None if g is None else leaf(g) for g in (_packed(b, grads) for b in old)]
    with torch.set_grad_enabled(differentiable):
        transformed = _transform_grads(old, packed, grads, grad_transform) if grad_transform else packed
        new = []
        for block, g in zip(old, transformed, strict=True):
            if g is not None:
                params, state = block.rule.update(block.params, g, block.state)
                block = block._replace(params=params, state=state)
            if param_transform:
                block = block._replace(params=pack([param_transform(p) for p in unpack(block.params, block.shapes)]))
            new.append(block)
    return Update(old, packed, new, layout(blocks))


def _transform_grads(
    blocks: list[Block], packed: list[Tensor | None], present: Sequence[Tensor | None], transform: GradTransform
) -> list[Tensor | None]:
    grads = {
        i: g
        for b, flat in zip(blocks, packed, strict=True)
        if flat is not None
        for i, g in zip(b.index, unpack(flat, b.shapes), strict=True)
    }
    order = [i for i, g in enumerate(present) if g is not None]
    changed = list(transform([grads[i] for i in order]))
    if [g.shape for g in changed] != [grads[i].shape for i in order]:
        raise ValueError(
            f"grad_transform got {len(order)} gradients and returned {len(changed)}, or other shapes. Return one "
            "gradient for each, in order."
        )
    grads.update(zip(order, changed, strict=True))
    return [None if flat is None else pack([grads[i] for i in b.index]) for b, flat in zip(blocks, packed, strict=True)]


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


def regrouped(cotangent: list[Block], entry: list[tuple[int, ...]]) -> list[Block]:
    """The cotangent in the layout that a step started from."""
    return cotangent if layout(cotangent) == entry else regroup(cotangent, entry)
