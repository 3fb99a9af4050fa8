"""Which tensors of a discriminator an unroll exchanges, and where each of them is kept."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..call.discriminator import all_modules
from ..live.belongings import Belongings


class Holders:
    """The tensors of some modules, by what an unroll does with them.

    Args:
        modules: all modules that hold the tensors, submodules included.
        params: the parameters that the inner optimizer moves, each once.

    Attributes:
        params: as given.
        live: parameters that require grad and that this optimizer does not move, a head of another optimizer say.
        carried: buffers, frozen parameters and unregistered tensors, each once: a loss may write to them.
        places: dicts and keys of ``carried``, with the position there.
        slots: containers and keys of ``params``, with the position there.
        belongings: what the modules keep outside of their registers.
        hidden: modules that no module has registered, which are kept in a list, say.
    """

    def __init__(self, modules: Sequence[nn.Module], params: Sequence[Tensor]) -> None:
        self.params = list(params)
        self.live: list[Tensor] = []
        self.carried: list[Tensor] = []
        self.places: list[tuple[dict[str, Any], str, int]] = []
        self.slots: list[tuple[Any, Any, int]] = []
        self._index: dict[int, int] = {}
        moved = {id(p): i for i, p in enumerate(params)}
        for module in modules:
            for name, p in module._parameters.items():
                if (i := moved.get(id(p))) is not None:
                    self.slots.append((module._parameters, name, i))
                elif p is None:
                    continue
                elif p.requires_grad:
                    self.live.append(p)
                else:
                    # Some spectral norms keep u and v as parameters that no optimizer ever moves.
                    self._carry(p, module._parameters, name)
            self._carry_buffers(module)
        attributes = [vars(t) for t in (*params, *self.live, *self.carried) if vars(t)]
        self.belongings = Belongings(modules, attributes)
        # Of a module that is only in a list, say, nothing moves but what a forward pass moves.
        known = set(map(id, modules))
        self.hidden = [m for m in all_modules(self.belongings.modules) if id(m) not in known]
        for module in self.hidden:
            self._carry_buffers(module)
        for tensor, container, key in self.belongings.places:
            if (i := moved.get(id(tensor))) is not None:
                # RNNs call their kernels with a list of their parameters.
                self.slots += [(container, key, i)] if container is not None else []
            elif tensor.is_leaf and not tensor.requires_grad:
                self._carry(tensor, container, key)

    def _carry(self, tensor: Tensor, container: Any, key: Any) -> None:
        i = self._index.setdefault(id(tensor), len(self.carried))
        if i == len(self.carried):
            self.carried.append(tensor)
        if type(container) in (dict, OrderedDict):
            self.places.append((container, key, i))

    def _carry_buffers(self, module: nn.Module) -> None:
        for name, b in module._buffers.items():
            # One with a graph is a generator's, and its gradient goes there.
            if b is not None and not b.requires_grad:
                self._carry(b, module._buffers, name)
