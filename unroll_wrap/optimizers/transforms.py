"""The user's transforms of gradients before the optimizer's step, and of parameters after it."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..messages import add_note
from .derivative import Transform, Way, check_derivative

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
    check: bool = False  # Whether to compare derivatives with differences.
    # The ways through a transform that have been compared: its name, whether parameters matter, the operators it calls.
    compared: set[Any] = field(default_factory=set)
    moved: bool = True  # Whether the discriminator's parameters may depend on the generator, as after a step.

    def __bool__(self) -> bool:
        """Return whether there is any transform or hook."""
        return self.gradients is not None or self.parameter is not None or bool(self.hooks)

    def of_gradients(self, grads: Sequence[Tensor | None], params: Sequence[Tensor]) -> list[Tensor | None]:
        """Apply the hooks and ``gradients`` to copies of the gradients, while the discriminator holds ``params``.

        None stands for a missing gradient.

        Raises:
            ValueError: a result has another shape, or is not what its derivative belongs to.
        """
        given = [g for g in grads if g is not None]
        present = [i for i, g in enumerate(grads) if g is not None]
        name = "grad_transform" if self.gradients else "A gradient hook"
        changed = iter(self._held(name, lambda given: self._gradients(given, present), given, params))
        return [None if g is None else next(changed) for g in grads]

    def of_parameter(self, i: int, params: Sequence[Tensor]) -> Tensor:
        """Apply ``parameter`` to a copy of the i-th parameter, and raise ValueError as ``of_gradients`` does."""
        if (transform := self.parameter) is None:
            return params[i]
        named = {"name": self.names[i]} if takes(transform, "name") else {}

        def changed(given: list[Tensor]) -> list[Tensor]:
            with _noted("param_transform, which receives one parameter and returns one of the same shape"):
                found = transform(given[0].clone(), **named)
            if getattr(found, "shape", None) != given[0].shape:
                raise ValueError(
                    f"param_transform got a parameter of shape {tuple(given[0].shape)} and returned {found!r:.200}. "
                    "Return the new parameter, of the same shape."
                )
            return [found]

        # A clone, because the parameter itself exchanges its contents with D's while D holds it.
        return self._held("param_transform", changed, [params[i].clone()], params)[0]

    def _gradients(self, grads: Sequence[Tensor], present: Sequence[int]) -> list[Tensor]:
        """Transform copies of the gradients of the parameters at the positions ``present``."""
        of = dict(zip(present, (g.clone() for g in grads), strict=True))
        for i, hook in self.hooks:
            if i in of and (changed := hook(of[i])) is not None:
                of[i] = changed
        given = list(of.values())
        if self.gradients is None:
            return given
        named = {"names": [self.names[i] for i in present]} if takes(self.gradients, "names") else {}
        with _noted("grad_transform, which receives the list of all gradients and returns a list of the same length"):
            changed: Any = self.gradients(given, **named)
        found: list[Any] = (
            list(changed) if isinstance(changed, Iterable) and not isinstance(changed, Tensor) else [changed]
        )
        if [getattr(g, "shape", None) for g in found] != [g.shape for g in grads]:
            more = ""
            if isinstance(changed, Tensor) and not changed.dim():
                more = " torch's clip_grad_norm_ returns a norm: pass unroll_wrap.clip_grad_norm(1.0) in its place."
            raise ValueError(
                f"grad_transform got {len(grads)} gradients and returned {changed!r:.200}. Return a list with one "
                f"gradient for each, in order and of the same shape.{more}"
            )
        return found

    def _held(self, name: str, transform: Transform, given: list[Tensor], params: Sequence[Tensor]) -> list[Tensor]:
        """Return what a transform makes of some tensors while the discriminator holds ``params``."""

        def held(both: Sequence[Tensor]) -> list[Tensor]:
            with self.holding(both[len(given) :] or params):
                return transform(list(both[: len(given)]))

        if not self.check:
            return held(given)
        depends = [*given, *(params if self.moved else ())]
        with Way() as way:
            found = held(given)
        key = name, self.moved, tuple(way.names)
        # A number that was read may be another one each time, so such a way is compared each time.
        if any(t.requires_grad for t in depends) and (way.reads or key not in self.compared):
            roots = [self.gradients, self.parameter, *(hook for _, hook in self.hooks)]
            check_derivative(name, held, depends, roots)
            self.compared.add(key)
        return found


@contextmanager
def _noted(what: str) -> Iterator[None]:
    """Add to an error of the user's function which one it was, and what it is called with."""
    try:
        yield
    except Exception as error:
        add_note(error, f"That was {what}.")
        raise


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
