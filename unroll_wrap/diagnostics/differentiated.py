"""Find the tensors to differentiate with respect to: those in the batch, and those that the losses capture."""

import functools
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..call.batch import distinct, mapped, tensors_in
from ..call.runs import stand_for
from ..live.restore import cells_of, slots_of
from ..torch_private import pytree

NOTHING = (
    "Nothing requires grad, neither in the batch nor among what the losses capture: fake arrives detached. Pass "
    "fake = G(z) with its graph, without detach() or no_grad(); or wrt=list(G.parameters()) for losses that run G."
)


class Inputs:
    """The tensors to differentiate with respect to, and the call's arguments with leaves in place of such tensors.

    Each tensor has its own leaf. If the batch holds ``fake`` and a tensor computed from it, each is moved on its own.

    Args:
        wrt: the tensors that the user asks for. None takes all that require grad in the arguments and among what the
            losses capture; if there are none, the parameters of a generator that the losses capture.
        losses: the losses of the call.
        batch: the positional arguments of the losses after D.
        kwargs: the keyword arguments of the losses.
        inner: the batch of each inner step.
        discriminator: the modules of D, whose parameters are left out.
    """

    tensors: list[Tensor]  # The tensors to differentiate with respect to; empty if nothing requires grad.
    captured: list[nn.Module]  # The modules that the losses capture, which may include those of D.
    chosen: bool  # Whether the user passed ``wrt``.

    def __init__(
        self,
        wrt: Sequence[Tensor] | Tensor | None,
        losses: Sequence[Callable[..., Tensor]],
        batch: tuple[Any, ...],
        kwargs: dict[str, Any],
        inner: Sequence[tuple[Any, ...]],
        discriminator: Iterable[nn.Module],
    ) -> None:
        owned = {id(p) for m in discriminator for p in m.parameters()}
        stands: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

        def moving(tensor: Tensor) -> Tensor:
            if not tensor.requires_grad:
                return tensor
            if id(tensor) not in stands:
                leaf = tensor.detach().clone().requires_grad_()
                # A tensor from a generator keeps a graph, which tells it from one that merely requires grad.
                stands[id(tensor)] = tensor, leaf, leaf if tensor.is_leaf else leaf.view_as(leaf)
                vars(stands[id(tensor)][2]).update(vars(tensor))
                stand_for(stands[id(tensor)][2], tensor)
            return stands[id(tensor)][2]

        self.batch, self.kwargs, self.inner = mapped(moving, (batch, kwargs, list(inner)))
        # A container that cannot be made anew still holds the user's own tensors.
        placed = {id(t) for t in tensors_in(self.batch, self.kwargs, self.inner)}
        leaf_of = {i: (user, leaf) for i, (user, leaf, stand_in) in stands.items() if id(stand_in) in placed}
        self._given = list(leaf_of.values())
        # A loss can reach tensors through an object among its arguments, as it does through a closure.
        opaque = [one for one in pytree.tree_leaves((batch, kwargs, list(inner))) if not isinstance(one, Tensor)]
        tensors, self.captured = _captured([*losses, *opaque])
        self.chosen = wrt is not None
        if wrt is None:
            found = [*(t for _, t in leaf_of.values()), *(t for t in tensors if t.requires_grad)]
            others = [p for m in self.captured for p in m.parameters()]
            others = [p for p in others if p.requires_grad and id(p) not in owned]
            self.tensors = distinct(found or others)
        else:
            asked = [wrt] if isinstance(wrt, Tensor) else list(wrt) if isinstance(wrt, Iterable) else [wrt]
            if not all(isinstance(t, Tensor) for t in asked):
                raise TypeError(f"wrt is {wrt!r:.200}. Pass tensors, such as wrt=list(G.parameters()).")
            self.tensors = [leaf_of[id(t)][1] if id(t) in leaf_of else t for t in asked]

    def gradient(self, loss: Tensor) -> list[Tensor]:
        """Return the gradient of a scalar, with zeros for tensors that it does not depend on."""
        if not loss.requires_grad:
            return [torch.zeros_like(t) for t in self.tensors]
        with _without_hooks(self.tensors):
            grads = torch.autograd.grad(loss, self.tensors, retain_graph=True, allow_unused=True)
            grads = [torch.zeros_like(t) if g is None else g for t, g in zip(self.tensors, grads, strict=True)]
            return self._each(grads)

    def _each(self, grads: list[Tensor]) -> list[Tensor]:
        """Return the gradient by each tensor on its own, without the part that passes through others of them."""
        # Those that the losses capture keep their graphs, and what was made later depends on what was made earlier.
        order = sorted(range(len(grads)), key=lambda i: -_number(self.tensors[i]))
        for at, i in enumerate(order):
            later = [j for j in order[:at] if self.tensors[j].grad_fn is not None]
            if later:
                outputs, bars = [self.tensors[j] for j in later], [grads[j] for j in later]
                found = torch.autograd.grad(outputs, self.tensors[i], bars, retain_graph=True, allow_unused=True)[0]
                grads[i] = grads[i] if found is None else grads[i] - found
        return grads

    def made(self, gradient: Sequence[Tensor]) -> list[Tensor]:
        """Return the gradient for tensors with a graph, such as fake; all of it if none has one, or if ``chosen``."""
        user = {id(leaf): user for user, leaf in self._given}
        made = [g for t, g in zip(self.tensors, gradient, strict=True) if user.get(id(t), t).grad_fn is not None]
        return list(gradient) if self.chosen or not made else made

    def unused(self, gradient: Sequence[Tensor]) -> bool:
        """Return whether the losses use a graph from outside the batch, and no tensor of the batch that has a graph."""
        of = {id(t): bool(g.any()) for t, g in zip(self.tensors, gradient, strict=True)}
        passed = [(user, leaf) for user, leaf in self._given if user.grad_fn is not None]
        known = {id(t) for pair in self._given for t in pair}
        reached = any(t.grad_fn is not None and id(t) not in known and of[id(t)] for t in self.tensors)
        return not self.chosen and bool(passed) and reached and not any(of.get(id(t)) for pair in passed for t in pair)

    @contextmanager
    def shifted(self, direction: Sequence[Tensor], length: float) -> Iterator[None]:
        """Move the tensors by ``length`` times ``direction`` within this context, and restore them bit for bit."""
        before = [t.detach().clone() for t in self.tensors]
        try:
            for t, d in zip(self.tensors, direction, strict=True):
                t.data.add_(d, alpha=length)
            yield
        finally:
            for t, b in zip(self.tensors, before, strict=True):
                t.data.copy_(b)


@contextmanager
def _without_hooks(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Take the hooks off the gradients of leaves: they change what training goes by, and no difference sees them."""
    hooks = [(t, t._backward_hooks) for t in tensors if t.grad_fn is None and t._backward_hooks]
    try:
        for t, _ in hooks:
            t._backward_hooks = None
        yield
    finally:
        for t, own in hooks:
            t._backward_hooks = own


def _number(tensor: Tensor) -> int:
    """Return when the node that made a tensor was made; -1 for a leaf."""
    return -1 if tensor.grad_fn is None else tensor.grad_fn._sequence_nr()


def _captured(losses: Iterable[Any]) -> tuple[list[Tensor], list[nn.Module]]:
    """Return the tensors, except parameters, and the modules that losses refer to, up to three levels deep."""
    tensors: list[Tensor] = []
    modules: list[nn.Module] = []
    todo, seen = [(loss, 0) for loss in losses], set()
    while todo:
        value, depth = todo.pop(0)
        if id(value) in seen or isinstance(value, (types.ModuleType, type)):
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module):
            modules.append(value)
            # A trainer that is a module may keep the fake as an attribute. Modules with parameters of their own are
            # left out: the other tensors that a layer keeps, as a legacy norm does, are computed anew.
            kept = [t for m in value.modules() if not m._parameters for t in vars(m).values()]
            tensors += [t for t in kept if isinstance(t, Tensor) and t.grad_fn is not None]
        elif inside := tensors_in(value):
            tensors += [t for t in inside if not isinstance(t, nn.Parameter)]
        elif depth < 3:
            todo += [(one, depth + 1) for one in _referenced(value)]
    return distinct(tensors), modules


def _referenced(value: Any) -> Iterator[Any]:
    """Yield the objects that a function or any other object refers to."""
    if isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, types.MethodType):
        yield from (value.__self__, value.__func__)
    elif isinstance(value, types.FunctionType):
        yield from (content for _, content in cells_of(value))
        yield from (value.__globals__[name] for name in value.__code__.co_names if name in value.__globals__)
        yield from value.__defaults__ or ()
    elif isinstance(value, (list, tuple, dict)):
        yield from (m for m in (value.values() if isinstance(value, dict) else value) if isinstance(m, nn.Module))
    else:
        yield from getattr(value, "__dict__", {}).values()
        yield from (getattr(value, name) for name in slots_of(type(value)) if hasattr(value, name))
