"""The user's transforms of gradients before the optimizer's step, and of parameters after it."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor

GradTransform = Callable[..., Sequence[Tensor]]
ParamTransform = Callable[..., Tensor]
Holding = Callable[[Sequence[Tensor]], AbstractContextManager[object]]


@dataclass(frozen=True)
class Transforms:
    """The transforms of one call, and what they need."""

    # Maps the list of existing gradients to a list of the same length, or None. If it has an argument ``names``, it
    # receives the names of their parameters.
    gradients: GradTransform | None = None
    # Maps an updated parameter to a parameter, or None. If it has an argument ``name``, it receives that.
    parameter: ParamTransform | None = None
    names: Sequence[str] = ()  # The names of all parameters.
    # ``(i, hook)`` for gradient hooks of parameter i that are differentiated with the update; they run first.
    hooks: Sequence[tuple[int, Callable[[Tensor], Any]]] = ()
    # Returns a context in which the discriminator has the given tensors as its parameters.
    holding: Holding = nullcontext
    check: bool = False  # Whether to look for results to which no derivative passes.

    def __bool__(self) -> bool:
        """Return whether there is any transform or hook."""
        return self.gradients is not None or self.parameter is not None or bool(self.hooks)

    def of_gradients(self, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Apply the hooks and ``gradients`` to copies of the gradients; None stands for a missing one."""
        grads = list(grads)
        for i, hook in self.hooks:
            if (g := grads[i]) is not None and (changed := hook(g.clone())) is not None:
                grads[i] = changed
        if self.gradients is None:
            return grads
        present = [i for i, g in enumerate(grads) if g is not None]
        before = [g for g in grads if g is not None]
        given = [g.clone() for g in before]
        shapes, nodes = [g.shape for g in given], [g.grad_fn for g in given]
        named = {"names": [self.names[i] for i in present]} if takes(self.gradients, "names") else {}
        changed: Any = self.gradients(given, **named)
        found: list[Any] = (
            list(changed) if isinstance(changed, Iterable) and not isinstance(changed, Tensor) else [changed]
        )
        if [getattr(g, "shape", None) for g in found] != shapes:
            raise ValueError(
                f"grad_transform got {len(shapes)} gradients and returned {changed!r:.200}. Return a list with one "
                "gradient for each, in order and of the same shape."
            )
        if self.check:
            _check_differentiable("grad_transform", before, given, nodes, found)
        new = iter(found)
        return [None if g is None else next(new) for g in grads]

    def of_parameter(self, param: Tensor, i: int) -> Tensor:
        """Apply ``parameter`` to a copy of the i-th parameter; raise if the shape changes or no derivative passes."""
        if self.parameter is None:
            return param
        named = {"name": self.names[i]} if takes(self.parameter, "name") else {}
        given = param.clone()
        node, found = given.grad_fn, self.parameter(given, **named)
        if getattr(found, "shape", None) != param.shape:
            raise ValueError(
                f"param_transform got a parameter of shape {tuple(param.shape)} and returned {found!r:.200}. Return "
                "the new parameter, of the same shape."
            )
        if self.check:
            _check_differentiable("param_transform", [param], [given], [node], [found])
        return found


def _check_differentiable(
    name: str, before: Sequence[Tensor], given: Sequence[Tensor], nodes: Sequence[Any], found: Sequence[Tensor]
) -> None:
    """Raise ValueError if a transform has detached a result, or written to its argument past autograd."""
    for old, new, node, result in zip(before, given, nodes, found, strict=True):
        past = new.grad_fn is node and bool(((new != old) & (old == old)).any())
        if old.requires_grad and (past or (not result.requires_grad and bool(result.any()))):
            raise ValueError(
                f"{name} detaches its argument, of shape {tuple(result.shape)}, or writes to it past autograd, so that "
                "no derivative passes through. Leave out .data, .detach() and no_grad() there, or pass "
                "stop_gradient=True for the first term alone."
            )


def check_leaves(results: Iterable[Any], inputs: Iterable[Any]) -> None:
    """Raise ValueError if the graph of an update ends at a tensor other than its own inputs."""
    known = {id(t) for t in inputs}
    todo = [t.grad_fn for t in results if isinstance(t, Tensor) and t.grad_fn is not None]
    seen = set(todo)
    while todo:
        node = todo.pop()
        if (leaf := getattr(node, "variable", None)) is not None and id(leaf) not in known:
            raise ValueError(
                f"A transform computes with a tensor of shape {tuple(leaf.shape)} that requires grad and is none of "
                "this step's, as one that it has kept since an earlier step is: the derivative would miss that. Keep "
                "momentum and the like in the state of the optimizer, and detach what is a constant."
            )
        following = [n for n, _ in node.next_functions if n is not None and n not in seen]
        seen.update(following)
        todo += following


def takes(function: Callable[..., Any], name: str) -> bool:
    """Return whether a function has an argument of this name."""
    try:
        return name in inspect.signature(function).parameters
    except ValueError:  # Some builtins have no signature.
        return False
