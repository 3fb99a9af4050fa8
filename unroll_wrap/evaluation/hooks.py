"""Note the hooks that a loss registers on the tensors and nodes of its graph.

They fire in every backward pass through the graph. A real step has one such pass, which they are meant for; without
care, they would also change the pass that differentiates it.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import register_multi_grad_hook
from torch.utils.hooks import RemovableHandle

from ..live.settings import Setting
from ..torch_private import put_runs_in_backward, runs_in_backward

# The code that makes handles for hooks on tensors and nodes. Hooks of modules and optimizers have handles of their own;
# a backward hook of a module registers one on a node.
_OF_GRAPHS = {Tensor.register_hook.__code__, BackwardCFunction._register_hook.__code__}
_LOOKING_ON = register_multi_grad_hook.__code__.co_filename


class _Here(threading.local):
    handles: list[RemovableHandle] | None = None


_here = _Here()


@contextmanager
def noted() -> Iterator[list[RemovableHandle]]:
    """Collect the handles of hooks that this thread registers on tensors and nodes, while ``hooks_noted`` is held."""
    before, _here.handles = _here.handles, []
    try:
        yield _here.handles
    finally:
        _here.handles = before


def gradient_hooks(tensor: Tensor) -> list[Callable[[Tensor], Any]]:
    """Return a tensor's hooks, except those of ``register_multi_grad_hook``, which only observe, inside the engine."""
    hooks: list[Any] = list((tensor._backward_hooks or {}).values())
    return [h for h in hooks if not hasattr(h, "__code__") or h.__code__.co_filename != _LOOKING_ON]


def _noting(init: Callable[..., None]) -> Callable[..., None]:
    def noting(self: RemovableHandle, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        if _here.handles is not None and sys._getframe(1).f_code in _OF_GRAPHS:
            _here.handles.append(self)

    return noting


def _of_leaves_too(runs: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def asked(node: Any) -> bool:
        try:
            return runs(node)
        except RuntimeError:
            # Torch has no answer for a leaf whose gradient autograd.grad returns. Its hooks run, as in backward().
            return True

    return asked


leaves_observed = Setting(runs_in_backward, put_runs_in_backward, _of_leaves_too)
hooks_noted = Setting(lambda: RemovableHandle.__init__, partial(setattr, RemovableHandle, "__init__"), _noting)
