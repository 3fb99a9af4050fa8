"""Find the tensors of a discriminator that an unroll exchanges, and every place that holds them."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..call.discriminator import all_modules
from ..live.belongings import Belongings
from .graph import leads_to


class Holders:
    """The tensors of some modules, grouped by what an unroll does with them.

    Attributes:
        params: the parameters that the inner optimizer moves.
        live: parameters that require grad and that this optimizer does not move, such as those of another optimizer.
        carried: buffers, frozen parameters and unregistered tensors, each once, which a loss may write to.
        places: ``(dict, key, i)`` for every dict entry that is ``carried[i]``.
        slots: ``(container, key, i)`` for every entry that is ``params[i]``.
        belongings: what the modules keep besides registered parameters, buffers and submodules.
        hidden: modules that no module has registered, such as those in a list.
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
        # No optimizer moves the parameters of an unregistered module, but a forward pass moves its buffers.
        known = set(map(id, modules))
        self.hidden = [m for m in all_modules(self.belongings.modules) if id(m) not in known]
        for module in self.hidden:
            self._carry_buffers(module)
        for tensor, container, key in self.belongings.places:
            if (i := moved.get(id(tensor))) is not None:
                # RNNs pass their kernels a list of their parameters.
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
            # A buffer whose graph is not of D's own making was made by a generator, and its gradient goes there.
            if b is not None and (not b.requires_grad or leads_to([b], self.params)):
                self._carry(b, module._buffers, name)
