"""Note and restore modules: their attributes, parameters and buffers, and what they keep besides."""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any

from torch import Tensor, nn

from .belongings import Belongings
from .restore import refill


@dataclass
class ModuleState:
    """The attributes, parameters and buffers of modules, and all else that a forward pass may change in them."""

    modules: Sequence[nn.Module]  # The modules of the player.
    hidden: Sequence[nn.Module]  # Modules that none of these has registered.
    belongings: Belongings  # What all of them keep besides registered parameters, buffers and submodules.
    live: Sequence[Tensor]  # Parameters whose ``requires_grad`` a loss may switch.

    def note(self) -> None:
        """Note the current state."""
        self._before = [
            (m, vars(m).copy(), [(r, r.copy()) for r in _registers(m)]) for m in (*self.modules, *self.hidden)
        ]
        held = [*(vars(m) for m in self.modules), *(m._buffers for m in self.modules)]
        self._noted = {id(value) for values in held for value in values.values() if isinstance(value, Tensor)}
        self._contents = self.belongings.contents()
        self._flags = [(p, p.requires_grad) for p in self.live]

    def restore(self) -> None:
        """Restore the noted state, as often as you like."""
        for module, attributes, registers in self._before:
            for register, before in registers:
                # Most modules have none.
                if before or register:
                    refill(register, before)
            _restore(vars(module), attributes)
        self.belongings.refill(self._contents)
        for restore in self.belongings.sources:
            restore()
        for p, flag in self._flags:
            p.requires_grad_(flag)

    def contents(self) -> Any:
        """Return what attributes and containers hold now."""
        held = [(self._kept(vars(m)), self._kept(m._buffers)) for m in self.modules]
        return held, self.belongings.contents()

    def put(self, contents: Any) -> None:
        """Restore what attributes and containers held."""
        for module, (attributes, buffers) in zip(self.modules, contents[0], strict=True):
            _restore(vars(module), self._kept(attributes))
            refill(module._buffers, self._kept(buffers))
        self.belongings.refill(contents[1])

    def _kept(self, held: dict[str, Any]) -> dict[str, Any]:
        """Return a copy, with clones of the tensors that losses have made since the state was noted.

        A later run may write to them. All others are exchanged, and those with a graph are not written to.
        """
        return {
            name: value.clone()
            if isinstance(value, Tensor) and not value.requires_grad and id(value) not in self._noted
            else value
            for name, value in held.items()
        }


def _registers(module: nn.Module) -> tuple[dict[Any, Any], ...]:
    """Return what a forward pass may add to: a layer that is built from the first batch, or a hook."""
    hooks = module._forward_hooks, module._forward_pre_hooks
    return module._parameters, module._buffers, module._modules, *hooks  # pyright: ignore[reportReturnType]


def _restore(now: dict[str, Any], before: dict[str, Any]) -> None:
    """Restore the attributes of a module.

    A forward pass may leave hidden features, a weight made by a legacy norm, a flag or a count. A layer that
    initialises itself from its first batch notes that it has, which is no longer so after an unroll.
    """
    if len(now) != len(before) or not all(map(is_, now.values(), before.values())):
        for name in [n for n in now if n not in before]:
            del now[name]
        now.update(before)
