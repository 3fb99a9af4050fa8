"""One optimizer step on every block, and its pullback. Where the gradients come from plays no part here."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .block import Block, Joined, Layout, each, layout, pack, pairs, regroup, split, unpack, values_of
from .rule import Pullback
from .transforms import Transforms, check_leaves


class Update(NamedTuple):
    """(θ, g, state) → (θ', state'), and what its pullback needs."""

    old: list[Block]  # θ and state, as leaves if autograd differentiates the update.
    new: list[Block]  # θ' and state'.
    # g, one entry for each parameter, as leaves of their own if autograd differentiates the update.
    grads: Sequence[Tensor | None]
    entry: Layout  # The layout of the blocks that the update was given.
    # The pullback of each block in closed form, None for a block that has not moved; or None in place of the list if
    # autograd differentiates the update.
    closed: list[Pullback | None] | None

    def following(self) -> list[Block]:
        """Return the new blocks without graph, from which the next step starts."""
        return self.new if self.closed else [each(b, Tensor.detach) for b in self.new]

    def pullback(self, cotangent: Sequence[Block]) -> tuple[list[Tensor | None], list[Block]]:
        """Pull the cotangent of (θ', state') back to every g and to (θ, state); None stands for zero."""
        if self.closed:
            return self._by_closed_form(self.closed, cotangent)
        moved = [(out, bar) for out, bar in pairs(self.new, cotangent) if bar is not None and out.requires_grad]
        inputs = [g for g in self.grads if g is not None]
        inputs += [t for b in self.old for t in values_of(b) if isinstance(t, Tensor)]
        outputs, bars = [out for out, _ in moved], [bar for _, bar in moved]
        found = iter(torch.autograd.grad(outputs, inputs, bars, allow_unused=True) if moved else [None] * len(inputs))
        of_grads = [None if g is None else next(found) for g in self.grads]
        return of_grads, [each(b, lambda _: next(found)) for b in self.old]

    # Without a graph, because the gradient of a D with a single parameter is packed as it is, with its own graph.
    @torch.no_grad()
    def _by_closed_form(
        self, closed: Sequence[Pullback | None], cotangent: Sequence[Block]
    ) -> tuple[list[Tensor | None], list[Block]]:
        of_grads: list[Tensor | None] = [None] * len(self.grads)
        of_old = []
        for old, new, bars, back in zip(self.old, self.new, cotangent, closed, strict=True):
            given = [bar for _, bar in pairs([new], [bars])]
            grad = _packed(old, self.grads)
            if back is None or grad is None or all(bar is None for bar in given):
                of_old.append(bars if back is None else each(old, lambda _: None))
                continue
            of_grad, found = back(given, grad)
            values = iter(found)
            of_old.append(each(old, lambda _, values=values: next(values)))
            for i, bar in zip(new.index, unpack(of_grad, new.shapes), strict=True):
                if self.grads[i] is not None:
                    of_grads[i] = bar
        return of_grads, of_old

    def cotangent(self, of_old: Sequence[Block], of_params: Sequence[Tensor | None]) -> list[Block]:
        """Return the cotangent of what the update was given: the part through the rule, and that through g."""
        return regroup(add_gradients(of_old, of_params), self.entry)


def update(
    blocks: Sequence[Block],
    grads: Sequence[Tensor | None],
    transforms: Transforms,
    differentiable: bool,
) -> Update:
    """Step every parameter that has a gradient; as in torch, the others keep their values and their step counts.

    If a gradient has a graph, that plays no part. What the pullback needs is kept if the update is ``differentiable``.
    """
    old = split(blocks, [g is not None for g in grads])
    if not transforms and (closed := _in_closed_form(old, grads, layout(blocks))) is not None:
        return closed
    leaf = _leaf if differentiable else Tensor.detach
    old = [each(b, leaf) for b in old]
    leaves = [None if g is None else leaf(g) for g in grads]
    with torch.set_grad_enabled(differentiable):
        given: Sequence[Tensor | None] = leaves
        if transforms.gradients or transforms.hooks:
            given = transforms.of_gradients(leaves, params_of(old))
        new = []
        for block in old:
            g = _packed(block, given)
            if g is not None:
                params, state = block.rule.update(block.params, g, block.state)
                block = block._replace(params=params, state=state)
            new.append(block)
        if transforms.parameter:
            params = params_of(new)
            new = [b._replace(params=pack([transforms.of_parameter(i, params) for i in b.index])) for b in new]
    if differentiable and transforms.check:
        check_leaves([t for b in new for t in values_of(b)], [*leaves, *(t for b in old for t in values_of(b))])
    return Update(old, new, leaves, layout(blocks), None)


@torch.no_grad()
def _in_closed_form(old: list[Block], grads: Sequence[Tensor | None], entry: Layout) -> Update | None:
    """Return the update, differentiated in closed form; None if a rule has no derivative in closed form."""
    new: list[Block] = []
    closed: list[Pullback | None] = []
    for block in old:
        g = _packed(block, grads)
        if g is None:
            new.append(block)
            closed.append(None)
            continue
        found = block.rule.with_pullback(block.params, g, block.state)
        if found is None:
            return None
        params, state, back = found
        new.append(block._replace(params=params, state=state))
        closed.append(back)
    return Update(old, new, grads, entry, closed)


# In one step, two backward passes, clipping and a GradScaler write to a gradient less often than this.
_KEPT = 8


def check_left(blocks: Sequence[Block], grads: Sequence[Tensor | None], left: Sequence[tuple[int, Tensor]]) -> None:
    """Raise if it is unclear whether the optimizer moves a parameter that ``d_loss`` does not reach.

    ``left`` has positions of parameters, each with the gradient that the loop has left in ``.grad``.

    Raises:
        ValueError: a gradient of zeros would move the parameter, where None would not.
    """
    # A gradient that zero_grad(set_to_none=False) keeps is written to in place in every step, so its version is high.
    unclear = {i for i, grad in left if grads[i] is None and grad._version > _KEPT}
    if not unclear:
        return
    parts = [part for b in blocks for part in ([b.index] if b.rule.joint else [(i,) for i in b.index])]
    for block in regroup(blocks, parts):
        if unclear.isdisjoint(block.index):
            continue
        rule, params = block.rule, block.params
        if rule.joint or not torch.equal(rule.update(params, torch.zeros_like(params), block.state)[0], params):
            shape = next(s for i, s in zip(block.index, block.shapes, strict=True) if i in unclear)
            raise ValueError(
                f"A loss of a step does not reach a parameter of shape {tuple(shape)}, whose .grad is kept "
                "from step to step, by zero_grad(set_to_none=False) as it seems: momentum and decay then move it all "
                "the same. Call zero_grad() as the loop does before this call, so that it can be seen."
            )


def params_of(blocks: Sequence[Block]) -> list[Tensor]:
    """Return all parameters in the order of their indices."""
    found: dict[int, Tensor] = {}
    for block in blocks:
        found.update(zip(block.index, unpack(block.params, block.shapes), strict=True))
    return [found[i] for i in range(len(found))]


def _packed(block: Block, grads: Sequence[Tensor | None]) -> Tensor | None:
    """Return the gradients of a block, packed, with zeros in place of None; None if the block has no gradient."""
    if isinstance(grads, Joined) and (packed := grads.packed(block.index)) is not None:
        return packed
    parts = [grads[i] for i in block.index]
    present = [g for g in parts if g is not None]
    if len(present) == len(parts):
        return pack(present)
    if not present:
        return None
    some = present[0]
    return pack([some.new_zeros(s) if g is None else g for g, s in zip(parts, block.shapes, strict=True)])


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()


def add_gradients(blocks: Sequence[Block], grads: Sequence[Tensor | None]) -> list[Block]:
    """Return the cotangents, with the gradient of each parameter added to that of θ; None stands for zero."""
    added = []
    for b in blocks:
        packed = _packed(b, grads)
        if packed is not None:
            b = b._replace(params=packed if b.params is None else b.params + packed)
        added.append(b)
    return added


def zero_cotangent(blocks: Sequence[Block]) -> list[Block]:
    """Return a cotangent of these blocks that is zero everywhere."""
    return [each(b, lambda _: None) for b in blocks]


def add_cotangents(one: Sequence[Block], other: Sequence[Block]) -> list[Block]:
    """Return the sum of two cotangents in the same layout, of which the second is zero for the state."""
    return [
        a if b.params is None else a._replace(params=b.params if a.params is None else a.params + b.params)
        for a, b in zip(one, other, strict=True)
    ]
