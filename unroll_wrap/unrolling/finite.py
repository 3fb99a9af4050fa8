"""Check that the losses and the gradient of a call are finite, and name the cause if they are not."""

import warnings
from collections.abc import Callable, Sequence
from math import isfinite

import torch
from torch import Tensor

from ..call.names import Names


def check_finite(
    d_losses: list[Tensor],
    g_loss: Tensor,
    given: dict[str, list[Tensor]],
    gradient: Sequence[Tensor],
    again: Callable[[], object],
    name_of: Callable[[int], str],
    names: Names,
    flags: Sequence[Tensor],
) -> list[float]:
    """Raise unless the losses and the gradient of the result are finite, and say which of them is not.

    ``given`` has the tensors that may be the cause, by their origin. ``again`` repeats the call, to find the operator
    whose gradient is NaN. The values of ``flags``, which come from the device with those of the losses, are returned.

    Raises:
        ValueError: a loss or the gradient is not finite.
    """
    # A tensor subclass of the user's, such as that of the noise that fake is made from, may redefine to().
    g_loss = g_loss if type(g_loss) is Tensor else g_loss.as_subclass(Tensor)
    like = Tensor, (), g_loss.dtype, g_loss.device
    losses = [
        v if (type(v), v.shape, v.dtype, v.device) == like else v.as_subclass(Tensor).reshape(()).to(g_loss)
        for v in (*d_losses, g_loss)
    ]
    sums = [(g.abs() if g.is_complex() else g).detach().sum().to(g_loss) for g in gradient if type(g) is Tensor]
    # All numbers come from the device in one transfer.
    noted = torch.stack([f.to(g_loss.device) for f in flags]).to(g_loss).unbind() if flags else ()
    numbers = torch.stack([*losses, *sums, *noted]).tolist()
    values, totals = numbers[: len(losses)], numbers[len(losses) : len(losses) + len(sums)]
    wrong = [k for k, value in enumerate(values) if not isfinite(value)]
    if not wrong:
        # A sum of finite numbers may overflow, so every gradient is looked at before an error is raised.
        if not all(map(isfinite, totals)) and not all(g.isfinite().all() for g in gradient):
            raise ValueError(
                f"The losses are finite, and the gradient of the unrolled one is not. {_where(again)} An unroll takes "
                "second derivatives where real steps take first ones, and these may be finite alone. Keep away from "
                "the point, by an eps inside a root or a norm, or pass stop_gradient=True for the first term of "
                "Eq. 12."
            )
        return numbers[len(losses) + len(sums) :]
    name = f"{names.loss} after the inner steps" if wrong[0] == len(d_losses) else name_of(wrong[0])
    for place, tensors in given.items():
        for t in tensors:
            if t.is_floating_point() and not (t.numel() and t.isfinite().all()):
                raise ValueError(
                    f"{name} is {values[wrong[0]]}, and the {place} that was given has a tensor of shape "
                    f"{tuple(t.shape)} that is empty or not finite. Look where it comes from"
                    + (": a generator, which has diverged." if t.grad_fn is not None else ".")
                )
    if any(p.dtype is torch.float16 for p in given[names.player.split()[-1]]):
        raise ValueError(
            f"{name} is {values[wrong[0]]}, and {names.player}'s parameters are in float16, which has no number "
            "above 65,504, and for which the eps of Adam, 1e-8, is 0. Keep them and their optimizer in float32 "
            "(.float()), and run the losses under torch.autocast."
        )
    so_far = ", ".join(f"{value:.4g}" for value in values[:-1][: wrong[0] + 1])
    raise ValueError(
        f"{name} is {values[wrong[0]]}; {names.player_loss} along the steps: {so_far}. Lower {names.player}'s "
        "learning rate or steps, or look for the operation that overflows."
    )


def _where(again: Callable[[], object]) -> str:
    """Return what autograd's anomaly mode says about the first operator whose gradient is NaN."""
    # Other processes may have found no NaN; they would not repeat the call, and this one would wait for them.
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        try:
            with warnings.catch_warnings(), torch.autograd.set_detect_anomaly(True):
                warnings.simplefilter("ignore")
                again()
        # A loss may fail when it runs again. That is another error than the one to be explained.
        except Exception as error:  # noqa: BLE001
            if "returned nan values" in str(error):
                return str(error)
    return "In which operator could not be found out."
