"""One call as the user has made it: its losses, its number of steps and its batches."""

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .messages import described

Loss = Callable[..., Tensor]
Batch = tuple[Any, ...]
Resample = Callable[[int], Sequence[Any]] | Iterable[Sequence[Any]]
Steps = int | Callable[[], int]


@dataclass(frozen=True)
class Call:
    """What a call is made with, where None has been replaced by what the constructor was given.

    Attributes:
        d_loss: ``(D, *batch, **kwargs) -> scalar``, minimised by the inner steps.
        g_loss: the same for the generator.
        steps: K.
        batch: what the losses take after D.
        kwargs: further arguments of both losses.
        inner: ``k -> batch`` if the inner steps have batches of their own; None if they have the call's.
    """

    d_loss: Loss
    g_loss: Loss
    steps: int
    batch: Batch
    kwargs: dict[str, Any]
    inner: Callable[[int], Batch] | None


def count_of(steps: Any) -> int:
    """Return K.

    Raises:
        ValueError: not a whole number, or below 0.
    """
    try:
        count = -1 if isinstance(steps, bool) else operator.index(steps)
    except TypeError:
        count = -1
    if count < 0:
        raise ValueError(f"steps is {steps!r}. Pass a whole number >= 0, or a callable that returns one.")
    return count


def batches_of(resample: Resample | None, steps: int) -> Callable[[int], Batch] | None:
    """Return ``k -> batch`` for the inner steps, or None if they have the call's own.

    Raises:
        TypeError: no function and nothing to iterate over; when a batch is asked for, one that is not a tuple or list.
    """
    if resample is None:
        return None
    if not callable(resample):
        if not isinstance(resample, Iterable):
            raise TypeError(
                f"resample is {described(resample)}. Pass None, a callable k -> batch, or an iterable of batches."
            )
        iterator = iter(resample)

        def following(k: int) -> Any:
            for drawn in iterator:
                return drawn
            raise ValueError(f"resample ran dry: it gave {k} batches for steps={steps}. Give one for each inner step.")

    def checked(k: int) -> Batch:
        drawn = resample(k) if callable(resample) else following(k)
        if not isinstance(drawn, (list, tuple)):
            raise TypeError(
                f"resample gave {type(drawn).__name__} for inner step {k}. Give a tuple with what the losses take "
                "after D, such as (real, fake)."
            )
        return tuple(drawn)

    return checked
