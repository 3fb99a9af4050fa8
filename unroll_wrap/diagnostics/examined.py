"""The call that is looked at: its arguments resolved once, and run as often as need be from the same state."""

import copy
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..call.categories import UnrollWarning
from ..call.losses import check_order
from ..call.messages import described
from ..live.random_state import EveryState
from ..live.snapshot import Snapshot
from ..loss import UnrolledGeneratorLoss
from .differentiated import NOTHING, Inputs
from .sizes import sizes_named

Wrt = Sequence[Tensor] | Tensor | None


class Examined:
    """One call of an unrolled loss, for ``verify``, ``diagnose`` and ``predict``.

    Args:
        unrolled: the loss.
        batch: as for a call.
        wrt: what to differentiate with respect to, see Inputs.
        options: as for a call.
        steps: in the place of the loss's own, and of those among the options.

    Attributes:
        unrolled: as given.
        d_loss: of this call.
        g_loss: the same.
        steps: K.
        inputs: what is differentiated, and the batches with leaves in its place.
        owned: the parameters that move.
        state: of random numbers and of a generator's buffers, where every run begins.
        given: what has been passed, to be resolved anew.

    Raises:
        ValueError: the optimizer does not fit the discriminator.
    """

    def __init__(
        self,
        unrolled: UnrolledGeneratorLoss,
        batch: tuple[Any, ...],
        wrt: Wrt,
        options: dict[str, Any],
        steps: int | None = None,
    ) -> None:
        self.unrolled = unrolled
        kwargs = {k: v for k, v in options.items() if k not in ("d_loss", "g_loss", "steps", "resample")}
        self.d_loss, self.g_loss = unrolled.losses(options.get("d_loss"), options.get("g_loss"))
        steps = options.get("steps") if steps is None else steps
        self.steps, batches = unrolled.plan(steps, options.get("resample"))
        # Drawn once: a loader gives other batches the next time.
        drawn = [batches(k) for k in range(self.steps)] if batches else []
        self.given = batch, wrt, {**options, "resample": drawn or None}
        modules, _, self.owned = unrolled.parts()
        self.inputs = Inputs(wrt, (self.d_loss, self.g_loss), batch, kwargs, drawn, modules)
        self.state = EveryState([*self.inputs.tensors, *self.owned], self.inputs.captured)

    def required(self) -> "Examined":
        """The same.

        Raises:
            ValueError: there is nothing to differentiate with respect to.
        """
        if not self.inputs.tensors:
            raise ValueError(NOTHING)
        return self

    def run(
        self,
        unrolled: UnrolledGeneratorLoss | None = None,
        steps: int | None = None,
        within: AbstractContextManager[object] | None = None,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The value of a call, ``d_loss`` at its inner steps, and its gradient by the inputs.

        Args:
            unrolled: another loss with the same parts.
            steps: fewer of them.
            within: a context for it all.
        """
        steps = self.steps if steps is None else steps
        inputs = self.inputs
        # What the losses keep of their own is put back too.
        with (
            self.state.replayed(),
            Snapshot([self.d_loss, self.g_loss]),
            sizes_named(inputs.batch),
            within or nullcontext(),
        ):
            # A copy: what a first call says is still to be said by the user's own.
            loss, d_losses = copy.copy(unrolled or self.unrolled).watched(
                *inputs.batch,
                d_loss=self.d_loss,
                g_loss=self.g_loss,
                steps=steps,
                resample=inputs.inner[:steps] or None,
                **inputs.kwargs,
            )
            return loss.detach(), d_losses, inputs.gradient(loss)

    def quietly(self, *given: Any, **options: Any) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The same, without the warnings that a call of its own would give."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnrollWarning)
            return self.run(*given, **options)


def check_examined(unrolled: Any, function: str, batch: Sequence[Any]) -> None:
    """The loss itself, not what it returns, with gradients, and a batch in order.

    Raises:
        TypeError: something else.
        RuntimeError: under ``torch.no_grad()``.
    """
    # Not isinstance of UnrolledGeneratorLoss, which imports this.
    if not hasattr(unrolled, "plan") or isinstance(unrolled, type):
        raise TypeError(
            f"{function} got {described(unrolled)} first. Pass the UnrolledGeneratorLoss, and then the batch: "
            f"{function}(unrolled, real, fake)."
        )
    if not torch.is_grad_enabled():
        raise RuntimeError(f"{function} compares gradients, and torch.no_grad() is on. Leave that context.")
    check_order(unrolled.d_loss, batch)
