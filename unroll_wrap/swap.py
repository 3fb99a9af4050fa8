"""Tensors in and out of the user's own modules.

A loss reaches the discriminator in many ways: as an argument, through ``self.netD``, a loss object, a DataParallel
wrapper, a method. All of them end at the same modules, so the unrolled tensors are put there while a loss runs, and
the originals are put back whatever happens. No other file touches the internals of ``nn.Module``.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

# The kinds of a module's attributes, nearly all of them, that are no tensors and no lists of any.
_NO_TENSORS = {bool, int, float, str, type(None), tuple, set, dict, OrderedDict}


class UnrolledParameter(nn.Parameter):
    """A leaf that stands in for a parameter during an unroll, and always requires grad.

    Most loops switch D's ``requires_grad`` off around the generator's step, some from within the loss. An unroll
    differentiates through D all the same, so these switches have no effect here.
    """

    def __new__(  # pyright: ignore[reportInconsistentConstructor]
        cls, data: Tensor, requires_grad: bool = True
    ) -> "UnrolledParameter":
        """A fresh leaf over the memory of ``data``; copy.deepcopy passes the flag."""
        # Through .data: parameters are views of one vector, and autograd would take a write to one for a write to all.
        return torch.Tensor._make_subclass(cls, data.data, True)

    def requires_grad_(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, requires_grad: bool = True
    ) -> "UnrolledParameter":
        """Leave the flag on, whatever is asked."""
        return self

    @property
    def requires_grad(self) -> bool:
        """True."""
        return True

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        pass

    @property
    def data(self) -> Tensor:
        """The values, outside autograd."""
        return super().data

    @data.setter
    def data(self, value: Tensor) -> None:
        # The optimizer's part of the step reads the memory that this is a leaf over.
        super().data.copy_(value)


class Swap:
    """Where the moving tensors of some modules live, and how those modules looked before.

    A context: on leaving it, every parameter, buffer, attribute, flag and entry of a list of tensors is what it was.

    Args:
        modules: all modules that hold the tensors, submodules included.
        params: the parameters that the inner optimizer moves, each once.
    """

    def __init__(self, modules: Sequence[nn.Module], params: Sequence[Tensor]) -> None:
        self.modules = modules
        self._param_slots: list[tuple[Any, Any, int]] = []
        self._buffer_slots: list[tuple[Any, Any, int]] = []
        self._originals: list[Tensor] = []
        self._live: list[Tensor] = []
        self._lists: list[tuple[list[Any], list[Any]]] = []
        moved = {id(p): i for i, p in enumerate(params)}
        carried: dict[int, int] = {}
        for module in modules:
            for name, p in module._parameters.items():
                if (i := moved.get(id(p))) is not None:
                    self._param_slots.append((module._parameters, name, i))
                elif p is None:
                    continue
                elif p.requires_grad:
                    self._live.append(p)
                else:
                    # Some spectral norms keep u and v as parameters that no optimizer ever moves.
                    self._carry(module._parameters, name, p, carried)
            for name, b in module._buffers.items():
                if b is not None:
                    self._carry(module._buffers, name, b, carried)
            for name, value in vars(module).items():
                if type(value) in _NO_TENSORS:
                    continue
                # RNNs call their kernels with a list of their parameters, and keep another of weak references. Other
                # lists a forward pass may append to.
                if isinstance(value, list):
                    self._lists.append((value, list(value)))
                    self._param_slots += [(value, i, moved[id(v)]) for i, v in enumerate(value) if id(v) in moved]
                elif isinstance(value, Tensor) and value.is_leaf and not value.requires_grad:
                    # A buffer that nobody registered.
                    self._carry(vars(module), name, value, carried)

    def _carry(self, container: dict[str, Any], name: str, tensor: Tensor, carried: dict[int, int]) -> None:
        if id(tensor) not in carried:
            carried[id(tensor)] = len(self._originals)
            self._originals.append(tensor)
        self._buffer_slots.append((container, name, carried[id(tensor)]))

    def __enter__(self) -> "Swap":
        """Note how everything looks."""
        self._before = [(m, vars(m).copy(), m._parameters.copy(), m._buffers.copy()) for m in self.modules]
        self._flags = [(p, p.requires_grad) for p in self._live]
        return self

    def __exit__(self, *_: object) -> None:
        """Put every original back where it was."""
        for module, attributes, params, buffers in self._before:
            _refill(module._parameters, params)
            _refill(module._buffers, buffers)
            now = vars(module)
            if len(now) != len(attributes) or not all(map(is_, now.values(), attributes.values())):
                _restore(now, attributes)
        for values, items in self._lists:
            values[:] = items
        for p, flag in self._flags:
            p.requires_grad_(flag)
        del self._before, self._flags

    def originals(self) -> tuple[Tensor, ...]:
        """The live buffers, and the parameters that nothing trains."""
        return tuple(self._originals)

    def put(self, params: Sequence[Tensor], buffers: Sequence[Tensor]) -> None:
        """Let the modules use ``params`` and clones of ``buffers``.

        Clones, afresh for every evaluation: an in-place update, or one through ``.data`` that autograd cannot
        see, would otherwise change what an earlier step has saved for its backward pass.
        """
        for container, key, i in self._param_slots:
            container[key] = params[i]
        clones = copies(buffers)
        for container, key, i in self._buffer_slots:
            container[key] = clones[i]

    def params(self) -> list[Tensor]:
        """What the moving parameters are now."""
        now = {i: container[key] for container, key, i in self._param_slots}
        return [now[i] for i in range(len(now))]

    def holds(self, params: Sequence[Tensor]) -> bool:
        """Whether D has these very parameters in it."""
        return all(container[key] is params[i] for container, key, i in self._param_slots)

    def buffers(self) -> tuple[Tensor, ...]:
        """What the buffers are now, after a loss has run."""
        now = list(self._originals)
        for container, key, i in self._buffer_slots:
            if isinstance(value := container.get(key), Tensor):
                now[i] = value
        return tuple(now)


def copies(buffers: Iterable[Tensor]) -> list[Tensor]:
    """Tensors of the same kinds with the same content."""
    return [
        nn.Parameter(b.clone(), requires_grad=False) if isinstance(b, nn.Parameter) else b.detach().clone()
        for b in buffers
    ]


@contextmanager
def aside(params: Sequence[Tensor]) -> Iterator[None]:
    """Live parameters require grad meanwhile, and have none.

    A loss that reaches one itself, not its stand-in, then shows by its graph, whatever the user's flags say; and one
    that calls ``zero_grad()`` of the optimizer clears nothing.
    """
    before = [(p.requires_grad, p.grad) for p in params]
    try:
        for p in params:
            p.requires_grad_(True).grad = None
        yield
    finally:
        for p, (flag, grad) in zip(params, before, strict=True):
            p.requires_grad_(flag).grad = grad


def _restore(now: dict[str, Any], before: dict[str, Any]) -> None:
    """All that a forward pass leaves on its module: hidden features, a weight that a legacy norm made, a flag, a count.

    A layer that initialises itself from its first batch notes that it has, and here it has not.
    """
    for name in [n for n in now if n not in before]:
        del now[name]
    now.update(before)


def _refill(container: dict[str, Any], originals: dict[str, Any]) -> None:
    container.clear()
    container.update(originals)


def all_parameters(modules: Iterable[nn.Module]) -> list[Tensor]:
    """Every parameter of these modules, each once, in the order of ``nn.Module.parameters``."""
    return list({id(p): p for m in modules for p in m._parameters.values() if p is not None}.values())


def all_modules(roots: Iterable[nn.Module]) -> list[nn.Module]:
    """Every module under ``roots``, wrappers and what they wrap included, each once, in the order of ``modules()``."""
    found: dict[int, nn.Module] = {}

    def visit(module: nn.Module | None) -> None:
        if module is not None and id(module) not in found:
            found[id(module)] = module
            for child in module._modules.values():
                visit(child)

    for root in roots:
        visit(root)
    return list(found.values())
