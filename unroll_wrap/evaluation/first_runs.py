"""Watch the losses in the first call of an unrolled loss, for what they detach and what an unroll cannot give them."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..call.batch import Arguments
from ..torch_private import FunctionMode, pytree
from .detachments import Cut, Detachments
from .unreadable import Unreadable

_SWITCHES = (Tensor.requires_grad_, Tensor.requires_grad.__set__)  # pyright: ignore[reportAttributeAccessIssue]


class FirstRuns:
    """Runs the losses of one call, and notes what they do.

    Args:
        modules: the modules of D.
        owned: the parameters that move.
        state: the tensors of the optimizer's state.
        moving: D's own tensors that change in an unroll.
        who: what messages call D.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        owned: Iterable[Tensor],
        state: Iterable[Tensor],
        moving: Iterable[Tensor],
        who: str,
    ) -> None:
        self.cuts: dict[str, Cut] = {}  # For each loss that returns a value computed from something it has detached.
        # By id, the tensors that a loss has made require grad, as a gradient penalty does.
        self.switched_on: dict[int, Tensor] = {}
        by_id = {id(p): p for p in owned}
        # One for all losses, because one may keep what another detaches.
        self.detachments = Detachments({id(m) for m in modules}, by_id, FirstRuns.run.__code__)
        self.unreadable = Unreadable(by_id, state, moving, who)

    def run(self, name: str, loss: Callable[..., Tensor], discriminator: Any, arguments: Arguments) -> Tensor:
        """Run a loss, and watch it."""
        self.unreadable.arguments = arguments
        try:
            with (watch := _Watch(self)):
                value = loss(discriminator, *arguments.batch, **arguments.kwargs)
        except Exception as error:
            self.unreadable.check(name, error)
            raise
        self.unreadable.check(name)
        if mixed := [tuple(p.shape) for p in watch.frozen.values() if p.requires_grad]:
            raise ValueError(
                f"{name} switches requires_grad off for parameters of shapes {mixed[:4]} and on again: a part of it "
                "depends on them without a derivative, which an unroll would miss. Freeze them for all of the loss, or "
                "for none of it."
            )
        if cut := self.detachments.of(value):
            self.cuts.setdefault(name, cut)
        return value


class _Watch(FunctionMode):
    """Shows every call of one of torch's functions to those who look for something."""

    def __init__(self, runs: FirstRuns) -> None:
        super().__init__()
        self._runs = runs
        self.frozen: dict[int, Tensor] = {}  # By id, the parameters that the loss has frozen.

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name == "__get__":  # That of an attribute, such as ``data``.
            name = getattr(getattr(func, "__self__", None), "__name__", "")
        given = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if func in _SWITCHES:
            self._switch(*args[:2], **kwargs)
        self._runs.unreadable.look(func, name, given, args, kwargs)
        return self._runs.detachments.run(func, name, given, args, kwargs)

    def _switch(self, tensor: Tensor, requires_grad: bool = True) -> None:
        if requires_grad and not tensor.requires_grad and not isinstance(tensor, nn.Parameter):
            self._runs.switched_on[id(tensor)] = tensor
        elif not requires_grad and tensor.requires_grad and isinstance(tensor, nn.Parameter):
            self.frozen[id(tensor)] = tensor
