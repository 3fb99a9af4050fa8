"""Explain why a loss failed, if the batch or the discriminator is of another kind than the loss expects."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .messages import described


def listed(given: Sequence[Any], error: Exception) -> TypeError | None:
    """Return an error if the batch holds a list for a tensor, as a loader of images and labels yields it, or None.

    Args:
        given: the arguments of the loss.
        error: the error that the loss raised.
    """
    wrong = [x for x in given[1:] if isinstance(x, (list, tuple)) and type(x).__name__ in str(error)]
    if not wrong or not any(isinstance(x, Tensor) for x in wrong[0]):
        return None
    return TypeError(
        f"A loss got {described(wrong[0])}, for a tensor of the batch, and failed: {error}. A loader of images and "
        "labels yields both: take them apart, as in `for real, labels in loader`, and pass unrolled(real, fake)."
    )


def misplaced(name: str, params: Sequence[Tensor], error: Exception) -> ValueError | None:
    """Return an error if the discriminator is on the meta device or in half precision, or None.

    Args:
        name: the name of the loss.
        params: the parameters of the discriminator.
        error: the error that the loss raised.
    """
    if any(p.is_meta for p in params):
        return ValueError(
            f"{name} failed, and the discriminator is on the meta device, where tensors have shapes and no numbers. "
            "Build it on a real device, or call D.to_empty(device=...) and load its weights, and make its optimizer "
            f"after that. The loss said: {error}"
        )
    half = next((p.dtype for p in params if p.dtype in (torch.float16, torch.bfloat16)), None)
    if half is not None:
        return ValueError(
            f"{name} failed, and the discriminator's parameters are in {half}, its batch is not. Keep D and its "
            f"optimizer in float32 (D.float()), and run the losses under torch.autocast. The loss said: {error}"
        )
    return None


def several(discriminator: Any, error: Exception) -> TypeError | None:
    """Return an error if a loss calls a list of discriminators as if it were one, or None.

    Args:
        discriminator: the discriminator that the loss was called with.
        error: the error that the loss raised.
    """
    if isinstance(discriminator, nn.Module) or "object is not callable" not in str(error):
        return None
    return TypeError(
        f"A loss calls D(x), and the discriminator is {described(discriminator)}: {error}. Pass losses of your own "
        "(d_loss=..., g_loss=...) that say which of them is asked, such as an objective's sum over D[0] and D[1]."
    )
