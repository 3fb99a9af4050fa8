"""Run the returned loss for K = 0, where there are no steps."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..call.batch import tensors_in
from ..call.borrowed import Borrowed
from ..call.call import Call
from ..call.logits import check_logits
from ..call.names import Names
from ..live.undo import Undo
from .loss_errors import explained, one_element
from .swap import Swap


def evaluate_plainly(
    call: Call, names: Names, discriminator: Any, swap: Swap, owned: Sequence[Tensor], on_logits: set[Any], undo: Undo
) -> Tensor:
    """Return ``g_loss`` for K = 0, on clones of D's tensors, which leaves D as it is."""
    swap.put([p.detach().clone().requires_grad_() for p in owned], swap.originals())
    undo.later(Borrowed(tensors_in(call.batch, call.kwargs)).give_back)
    with explained(names.loss, call.g_loss, (discriminator, *call.batch), call.kwargs, names.short), swap.shielded():
        value = call.g_loss(discriminator, *call.batch, **call.kwargs)
    check_logits(call.g_loss, value := one_element(names.loss, value), on_logits)
    return value
