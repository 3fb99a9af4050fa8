"""Find layers that an evaluation has left in eval mode, and parameters that a loop may have frozen for good."""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from ..messages import users_line
from .categories import EvalMode, PartlyFrozen
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


def warn_of_frozen(moved: Sequence[Tensor], who: str) -> None:
    """Warn if some of the parameters that the steps move do not require grad, and others do.

    A loop that freezes all of them for the generator's step moves them in the player's own.
    """
    frozen = [tuple(p.shape) for p in moved if not p.requires_grad]
    if frozen and len(frozen) < len(moved):
        warnings.warn(
            f"{len(frozen)} of {len(moved)} parameters of {who} do not require grad at this call, of shapes "
            f"{frozen[:4]}, and the inner steps move them, because {who}'s optimizer has moved them before. If your "
            "loop keeps them frozen, give the optimizer the others alone, and build the loss anew. If they are frozen "
            'for this call only, call warnings.simplefilter("ignore", unroll_wrap.PartlyFrozen).',
            PartlyFrozen,
            stacklevel=users_line(),
        )
