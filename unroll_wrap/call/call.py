"""Read the arguments of a user's call: its losses, its number of steps and its batches."""

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from ..live.restore import cells_of
from ..messages import add_note, described

Loss = Callable[..., Tensor]
Batch = tuple[Any, ...]
Resample = Callable[[int], Sequence[Any]] | Iterable[Sequence[Any]]
Steps = int | Callable[[], int]


@dataclass(frozen=True)
class Call:
    """The arguments of a call, where those of the constructor replace None."""

    d_loss: Loss  # ``(D, *batch, **kwargs) -> scalar``, minimised by the inner steps.
    g_loss: Loss  # ``(D, *batch, **kwargs) -> scalar``, minimised by the generator.
    steps: int  # K.
    batch: Batch  # The positional arguments of both losses after D.
    kwargs: dict[str, Any]  # The keyword arguments of both losses.
    # ``k -> batch`` if the inner steps have batches of their own; None if all of them use ``batch``.
    inner: Callable[[int], Batch] | None

    @cached_property
    def code(self) -> tuple[int, ...]:
        """What is the same for two calls whose losses and batches run the same code, though not on the same objects."""
        return (*codes_of(self.d_loss), *codes_of(self.g_loss), *codes_of(self.inner))


def codes_of(function: Any, depth: int = 3) -> tuple[int, ...]:
    """Return hashes of the code of a function, and of the functions that it encloses."""
    function = getattr(function, "func", function)
    code = getattr(function, "__code__", None)
    if code is None:
        return (hash(type(function)),)
    inner = [] if depth == 0 else [value for _, value in cells_of(function) if callable(value)]
    return (hash(code), *(one for value in inner for one in codes_of(value, depth - 1)))


def count_of(steps: Any) -> int:
    """Return ``steps``, or what a schedule returns, as an int; raise ValueError unless it is a whole number >= 0."""
    if callable(steps):
        try:
            steps = steps()
        except TypeError as error:
            add_note(error, "That was the schedule that was passed as steps, which is called without arguments.")
            raise
    try:
        count = -1 if isinstance(steps, bool) else operator.index(steps)
    except TypeError:
        count = -1
    if count < 0:
        raise ValueError(f"steps is {steps!r}. Pass a whole number >= 0, or a callable that returns one.")
    return count


def batches_of(resample: Resample | None, steps: int) -> Callable[[int], Batch] | None:
    """Return ``k -> batch`` for the inner steps, or None if they use the call's batch."""
    if resample is None:
        return None
    if not (callable(resample) or isinstance(resample, Iterable)):
        raise TypeError(
            f"resample is {described(resample)}. Pass None, a callable k -> batch, or an iterable of batches."
        )
    following = iter(() if callable(resample) else resample)

    def checked(k: int) -> Batch:
        try:
            drawn = resample(k) if callable(resample) else next(following)
        except StopIteration:
            raise ValueError(
                f"resample ran dry: it gave {k} batches for steps={steps}. Give one for each inner step. An iterator "
                "that earlier calls have used up has to be made anew."
            ) from None
        if not isinstance(drawn, (list, tuple)):
            raise TypeError(
                f"resample gave {type(drawn).__name__} for inner step {k}. Give a tuple with what the losses take "
                "after the player, such as (real, fake)."
            )
        return tuple(drawn)

    return checked


def once_a_round(batch: Callable[[int], Batch], steps: int) -> Callable[[int], Batch]:
    """Return ``k -> batch`` for inner steps of which ``steps`` make up a round and share its batch."""
    drawn: dict[int, Batch] = {}

    def of_step(k: int) -> Batch:
        if k // steps not in drawn:
            drawn.clear()
            drawn[k // steps] = batch(k // steps)
        return drawn[k // steps]

    return batch if steps == 1 else of_step


def check_options(backward: Any, **transforms: Any) -> None:
    """Raise TypeError unless ``backward`` is an instance of a backward, and every transform is a function or None."""
    if isinstance(backward, type) or not all(hasattr(backward, name) for name in ("tape", "second_order", "rewinds")):
        raise TypeError(f"backward is {described(backward)}. Pass an instance, such as Store() or Recompute().")
    for name, value in transforms.items():
        if value is not None and (not callable(value) or isinstance(value, type)):
            raise TypeError(f"{name} is {described(value)}. Pass a function, or None.")
