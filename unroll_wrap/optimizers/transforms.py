"""What a loop does to gradients before the optimizer's step, and to parameters after it, as functions of the user's."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

GradTransform = Callable[..., Sequence[Tensor]]
ParamTransform = Callable[..., Tensor]
Holding = Callable[[Sequence[Tensor]], AbstractContextManager[object]]


def _holding(params: Sequence[Tensor]) -> AbstractContextManager[object]:  # noqa: ARG001
    return nullcontext()


@dataclass(frozen=True)
class Transforms:
    """Both of them; either may be None.

    Attributes:
        gradients: from the list of the gradients there are to a list of the same length. It is told the names of their
            parameters if it takes an argument ``names``.
        parameter: from an updated parameter to a parameter. It is told the ``name`` if it takes such an argument.
        names: of all parameters.
        hooks: of parameters, each with its position, where they are differentiated with the update, before all else.
        holding: a context in which the discriminator has given tensors for its parameters.
    """

    gradients: GradTransform | None = None
    parameter: ParamTransform | None = None
    names: Sequence[str] = ()
    hooks: Sequence[tuple[int, Callable[[Tensor], Any]]] = ()
    holding: Holding = field(default=_holding)

    def __bool__(self) -> bool:
        """Whether there is any."""
        return self.gradients is not None or self.parameter is not None or bool(self.hooks)

    def of_gradients(self, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
        """One gradient for each parameter, or None, and the same after ``gradients``, which gets copies.

        Raises:
            ValueError: it returns something else than a gradient for each.
        """
        grads = list(grads)
        for i, hook in self.hooks:
            if (g := grads[i]) is not None and (changed := hook(g.clone())) is not None:
                grads[i] = changed
        if self.gradients is None:
            return grads
        present = [i for i, g in enumerate(grads) if g is not None]
        given = [g.clone() for g in grads if g is not None]
        shapes = [g.shape for g in given]
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
        new = iter(found)
        return [None if g is None else next(new) for g in grads]

    def of_parameter(self, param: Tensor, i: int) -> Tensor:
        """The i-th parameter, and the same after ``parameter``, which gets a copy.

        Raises:
            ValueError: it returns something else.
        """
        if self.parameter is None:
            return param
        named = {"name": self.names[i]} if takes(self.parameter, "name") else {}
        found: Any = self.parameter(param.clone(), **named)
        if getattr(found, "shape", None) != param.shape:
            raise ValueError(
                f"param_transform got a parameter of shape {tuple(param.shape)} and returned {found!r:.200}. Return "
                "the new parameter, of the same shape."
            )
        return found


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a function has an argument of this name."""
    try:
        return name in inspect.signature(function).parameters
    except ValueError:  # of a builtin nothing is known
        return False
