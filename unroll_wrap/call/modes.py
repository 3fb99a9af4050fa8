"""Find layers of a player that an evaluation has left in eval mode, since the inner steps run them as they are."""

import warnings
from collections.abc import Iterable
from typing import Any

from torch import nn

from ..messages import users_line
from .categories import EvalMode
from .discriminator import given_modules


def asleep(modules: Iterable[nn.Module]) -> str:
    """Return the kinds of layers that act otherwise in training and are in eval mode, or an empty text."""
    layers = [m for one in modules for m in one.modules() if type(m).__name__.startswith(("BatchNorm", "Dropout"))]
    return " and ".join(sorted({type(m).__name__ for m in layers if not m.training}))


def warn_of_eval(player: Any, who: str) -> None:
    """Warn if a whole module of the player is in eval mode, and has layers to which that makes a difference.

    A part that is in eval mode while the whole trains is a choice, such as a frozen BatchNorm.
    """
    layers = asleep(m for m in given_modules(player) if not m.training)
    if layers:
        warnings.warn(
            f"{who} is in eval mode, so the inner steps run its {layers} as an evaluation does. If {who} trains "
            f"otherwise, call {who}.train() before. If you mean that, call "
            'warnings.simplefilter("ignore", unroll_wrap.EvalMode).',
            EvalMode,
            stacklevel=users_line(),
        )
