"""Keep D's parameters requiring grad while ``g_loss`` runs.

Most loops switch D's ``requires_grad`` off around the generator's step, some from within the loss. An unroll
differentiates through D all the same, so these switches have no effect there. The parameters keep their class, which a
loss may ask for; it is the class ``nn.Parameter`` whose switches leave some parameters alone for a while.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..live.settings import Setting
from ..live.undo import Undo

_flag: Any = Tensor.requires_grad
_kept: set[int] = set()


def _asked(self: Tensor, requires_grad: bool = True) -> Tensor:
    return self if id(self) in _kept else Tensor.requires_grad_(self, requires_grad)


def _set(self: Tensor, value: bool) -> None:
    if id(self) not in _kept:
        _flag.__set__(self, value)


_SWITCHES = {"requires_grad_": _asked, "requires_grad": property(lambda self: _flag.__get__(self), _set)}


def _put(switches: dict[str, Any]) -> None:
    for name in _SWITCHES:
        if name in switches:
            setattr(nn.Parameter, name, switches[name])
        elif name in vars(nn.Parameter):
            delattr(nn.Parameter, name)


_switches = Setting(
    lambda: {name: vars(nn.Parameter)[name] for name in _SWITCHES if name in vars(nn.Parameter)},
    _put,
    lambda _: _SWITCHES,
)


@contextmanager
def shielded(params: Sequence[Tensor]) -> Iterator[None]:
    """Keep parameters requiring grad within this context; raise ValueError if a loss has frozen one all the same."""
    with (undo := Undo()), undo:
        undo.later(lambda: _kept.difference_update(map(id, params)))
        _kept.update(map(id, params))
        _switches.hold(undo)
        yield
    if off := [type(p).__name__ for p in params if not p.requires_grad]:
        raise ValueError(
            f"g_loss switches requires_grad off for {len(off)} parameters of D, the first of them a {off[0]}: no "
            "derivative would pass through D's steps. Leave that to the training loop."
        )
