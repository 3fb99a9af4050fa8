"""Check the losses and the batch that a user passes: losses are functions of D, and fake is where they take it."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..messages import described
from ..objectives import Objective, hinge, least_squares, minimax, non_saturating, relativistic, wasserstein
from .call import Batch, Loss

_OF_REAL_AND_FAKE = [o.d_loss for o in (minimax, non_saturating, hinge, wasserstein, least_squares, relativistic)]


def both_or_minimax(d_loss: Loss | None, g_loss: Loss | None) -> tuple[Loss, Loss]:
    """Return both losses, or those of ``minimax`` for neither: with one alone the players play different games."""
    if d_loss is None and g_loss is None:
        return minimax
    if d_loss is None or g_loss is None:
        given, missing = ("g_loss", "d_loss") if d_loss is None else ("d_loss", "g_loss")
        raise TypeError(
            f"{given} was passed and {missing} was not. Pass both losses of your loop (d_loss=..., g_loss=...), or "
            "neither for minimax, which takes logits."
        )
    return d_loss, g_loss


def check_exchanged(**losses: Any) -> None:
    """Raise ValueError if two losses are functions with each other's names."""
    one, other = losses
    if [getattr(loss, "__name__", "") for loss in losses.values()] == [other, one]:
        raise ValueError(
            f"{one} is a function named {other}, and {other} one named {one}. The order is (..., {one}, {other})."
        )


def check_losses(**losses: Any) -> None:
    """Raise TypeError unless every loss is a function of D and a batch."""
    for name, value in losses.items():
        if not callable(value) or isinstance(value, type):
            pair = "a pair of losses, to be unpacked (*non_saturating)"
            given = pair if isinstance(value, Objective) else described(value)
            if isinstance(value, Tensor):
                given = f"{given}, a value and not the function that computes it"
            raise TypeError(f"{name} is {given}. Pass a function (D, *batch, **kwargs) -> scalar.{_meant(value)}")


def _meant(value: Any) -> str:
    if isinstance(value, int):
        return f" A number of steps is passed by its name: steps={value}."
    if isinstance(value, str):
        return " An objective is imported and unpacked, as in (D, opt_D, *hinge)."
    return ""


def check_order(d_loss: Callable[..., Tensor], batch: Sequence[Any]) -> None:
    """Raise ValueError if a tensor with a graph, as a fake has, is passed as real: training would go the wrong way."""
    if len(batch) != 2 or not all(isinstance(x, Tensor) for x in batch):
        return
    if (place := _place_of_fake(d_loss)) is None:
        return
    fake, real = batch[place], batch[1 - place]
    if real.grad_fn is not None and not fake.requires_grad:
        raise ValueError(
            f"real has a graph, as a generator's output has, and fake has none: shapes {tuple(real.shape)} and "
            f"{tuple(fake.shape)}. The order is {'(real, fake)' if place else '(fake, real)'}, as d_loss takes them."
        )


def in_order(d_loss: Callable[..., Tensor], batch_of: Callable[[int], Batch]) -> Callable[[int], Batch]:
    """Return ``k -> batch`` with a check of the order of each batch."""

    def checked(k: int) -> Batch:
        batch = batch_of(k)
        check_order(d_loss, batch)
        return batch

    return checked


def _place_of_fake(d_loss: Callable[..., Tensor]) -> int | None:
    """Return where in the batch fake is: last in the package's objectives; a user's loss tells by its arguments' names.

    The result is None if it does not tell.
    """
    if any(d_loss is known for known in _OF_REAL_AND_FAKE):
        return 1
    try:
        first, second = (name.lower() for name in list(inspect.signature(d_loss).parameters)[1:3])
    except (TypeError, ValueError):  # a builtin without a signature, or fewer than three arguments
        return None
    if "real" in first or "fake" in second:
        return 1
    return 0 if "fake" in first and "real" in second else None
