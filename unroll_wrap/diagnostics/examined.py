"""Resolve the arguments of the examined call once, and run it as often as needed from the same state."""

import copy
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..call.categories import UnrollWarning
from ..call.losses import check_order
from ..call.sequence import parts_of
from ..evaluation.loss_errors import sizes_named
from ..live.random_state import EveryState
from ..live.snapshot import Snapshot
from ..loss import UnrolledLoss
from ..messages import described
from .differentiated import NOTHING, Inputs

Wrt = Sequence[Tensor] | Tensor | None


class Examined:
    """One call of an unrolled loss, as ``verify``, ``diagnose`` and ``predict`` examine it."""

    def __init__(
        self,
        unrolled: UnrolledLoss,
        batch: tuple[Any, ...],
        wrt: Wrt,
        options: dict[str, Any],
        steps: int | None = None,
    ) -> None:
        self.unrolled = unrolled
        kwargs = unrolled.keywords(options)
        self.d_loss, self.g_loss = unrolled.losses(options)
        steps = options.get("steps") if steps is None else steps
        # K, that of the options or of the loss if the argument is None, and the batches of the inner steps.
        self.steps, batches = unrolled.plan(steps, options.get("resample"))
        modules, _, self.owned = unrolled.parts()  # The parameters that the inner steps move.
        # Batches are drawn only once, because a loader gives other batches the next time.
        drawn: list[tuple[Any, ...]] = []
        if batches:
            # What draws them may run D or a generator, which updates their statistics.
            drawing = [*modules, options.get("resample") or unrolled.resample]
            with EveryState(self.owned, ()).replayed(), Snapshot(drawing):
                drawn = [batches(k) for k in range(self.steps)]
        self.draws = False  # Whether the last run drew random numbers.
        # From these another object like this one can be made.
        self.given = batch, wrt, {**options, "resample": drawn or None}
        losses = [*parts_of(self.d_loss), *parts_of(self.g_loss)]
        self.inputs = Inputs(wrt, losses, batch, kwargs, drawn, unrolled.others())
        # The random states and the generator's buffers from which every run begins.
        self.state = EveryState([*self.inputs.tensors, *self.owned], self.inputs.captured)

    def required(self) -> "Examined":
        """Return this object if there is something to differentiate with respect to; raise ValueError otherwise."""
        if not self.inputs.tensors:
            raise ValueError(NOTHING)
        return self

    def run(
        self,
        unrolled: UnrolledLoss | None = None,
        steps: int | None = None,
        within: AbstractContextManager[object] | None = None,
        before_step: Callable[[], None] | None = None,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Return the value of the call, ``d_loss`` at its inner steps, and its gradient with respect to the inputs.

        Args:
            unrolled: another loss with the same parts to call instead; None for the call's own.
            steps: a smaller K; None for the call's own.
            within: a context for the whole run.
            before_step: called before each inner step.
        """
        steps = self.steps if steps is None else steps
        inputs = self.inputs
        inner: Any = inputs.inner[:steps] or None
        if before_step:
            # Batches that are drawn one by one tell when a step begins.
            inner = (batch for batch in inner or [inputs.batch] * steps if before_step() is None)
        with self._from_the_start(), within or nullcontext():
            loss, d_losses = self._call(unrolled or self.unrolled, steps, inner, self.g_loss)
            self.draws = not self.state.is_now()
            return loss.detach(), d_losses, inputs.gradient(loss)

    @contextmanager
    def _from_the_start(self) -> Iterator[None]:
        # The snapshot restores what the losses keep in themselves, and a batch that one changes in its own step.
        kept = [self.d_loss, self.g_loss, self.inputs.batch, self.inputs.kwargs, self.inputs.inner]
        with self.state.replayed(), Snapshot(kept), sizes_named(self.inputs.batch):
            yield

    def _call(self, unrolled: UnrolledLoss, steps: int, inner: Any, loss: Any) -> tuple[Tensor, list[Tensor]]:
        # This calls a copy of the loss, so that the user's own first call still does what only a first call does.
        one = copy.copy(unrolled)
        one.player_loss, one.loss = self.d_loss, loss
        return one.watched(*self.inputs.batch, steps=steps, resample=inner, **self.inputs.kwargs)

    def before_loss(self) -> EveryState:
        """Return the random state in which the returned loss is evaluated after the steps.

        A call with K = 0 that begins in this state draws the same dropout and augmentation as the loss after K steps.
        """
        found: list[EveryState] = []

        @functools.wraps(self.g_loss)
        def noted(*args: Any, **kwargs: Any) -> Any:
            if not found:
                found.append(EveryState([*self.inputs.tensors, *self.owned], ()))
            return self.g_loss(*args, **kwargs)

        with self._from_the_start(), _quiet(), torch.no_grad():
            self._call(self.unrolled, self.steps, self.inputs.inner or None, noted)
        return found[0]

    def quietly(self, *given: Any, **options: Any) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Return the result of ``run`` without the warnings of this package."""
        with _quiet():
            return self.run(*given, **options)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnrollWarning)
        yield


def check_examined(unrolled: Any, function: str, batch: Sequence[Any], options: Mapping[str, Any]) -> None:
    """Raise unless ``unrolled`` is the loss itself, gradients are on, and the batch is in order."""
    if not isinstance(unrolled, UnrolledLoss):
        raise TypeError(
            f"{function} got {described(unrolled)} first. Pass the UnrolledGeneratorLoss, and then the batch: "
            f"{function}(unrolled, real, fake)."
        )
    if not torch.is_grad_enabled():
        raise RuntimeError(f"{function} compares gradients, and torch.no_grad() is on. Leave that context.")
    check_order(unrolled.losses(options)[0], batch)
