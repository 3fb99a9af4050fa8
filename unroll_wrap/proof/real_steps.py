"""K real steps: the user's own discriminator, stepped by their own optimizer, and everything put back."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .. import guards
from ..call.batch import cut
from ..evaluation.checkpoints import in_place
from ..evaluation.swap import Swap
from ..live.snapshot import Snapshot


class RealSteps:
    """``g_loss`` after K steps of the live optimizers on the live parameters.

    No tensor, optimizer or module here is a copy: hooks, wrappers and attributes do what they do in training.

    Args:
        unrolled: the loss, for D, its optimizers and transforms.
        d_loss: of this call.
        g_loss: the same.
        batch: of this call, for ``g_loss``.
        inner: the batch of each inner step.
        kwargs: for both losses.
        constant: how many of the first steps count as constant in a derivative, by choice.

    Attributes:
        values: of the losses in the last run, each with its name.
    """

    def __init__(
        self,
        unrolled: Any,
        d_loss: Callable[..., Tensor],
        g_loss: Callable[..., Tensor],
        batch: tuple[Any, ...],
        inner: Sequence[tuple[Any, ...]],
        kwargs: dict[str, Any],
        constant: int = 0,
    ) -> None:
        self.modules, self.optimizers, self.owned = unrolled.parts()
        self.values: list[tuple[str, float]] = []
        self._unrolled = unrolled
        self._d_loss = d_loss
        self._g_loss = g_loss
        self._batch = batch
        self._inner = inner
        self._kwargs = kwargs
        self._constant = constant

    def run(
        self,
        shifted: Callable[[], AbstractContextManager[object]] = nullcontext,
        around: Callable[[str], AbstractContextManager[object]] = nullcontext,
    ) -> float:
        """The value.

        Args:
            shifted: moves what is differentiated with respect to.
            around: a context for each evaluation of a loss, which is named.
        """
        self.values, values = [], []
        # What a checkpoint runs again has to be in that context too.
        again = nullcontext() if around is nullcontext else in_place(Swap(self.modules, []))
        with Snapshot([*self.modules, *self.optimizers, self._d_loss, self._g_loss]), guards.unrolling(), again:
            # A gradient of zeros is what zero_grad(set_to_none=False) leaves, and what it will leave again.
            zeros = [p.grad is not None and not p.grad.any() for p in self.owned]
            for p in self.owned:
                p.requires_grad_(True)
            for k, batch in enumerate(self._inner):
                for p, zero in zip(self.owned, zeros, strict=True):
                    p.grad = torch.zeros_like(p) if zero else None
                with nullcontext() if k < self._constant else shifted():
                    loss = self._evaluate(f"d_loss at inner step {k}", self._d_loss, batch, around("d_loss"))
                    loss.backward(inputs=[p for p in self.owned if p.requires_grad])
                    self._step()
                if self._unrolled.average or k == len(self._inner) - 1:
                    values.append(self._g(shifted, around))
            return sum(values) / len(values) if values else self._g(shifted, around)

    def _g(self, shifted: Any, around: Any) -> float:
        # What g_loss leaves in D is not there in the next step, where the mean asks in between.
        aside = Snapshot(self.modules) if self._unrolled.average else nullcontext()
        with aside, shifted():
            return self._evaluate("g_loss", self._g_loss, self._batch, around("g_loss")).item()

    def _evaluate(self, name: str, loss: Any, batch: tuple[Any, ...], around: Any) -> Tensor:
        # Not under no_grad: a loss may take gradients inside.
        stand_ins = cut(batch, self._kwargs)
        with torch.enable_grad(), around:
            value = loss(self._unrolled.discriminator, *stand_ins.batch, **stand_ins.kwargs)
        self.values.append((name, value.item()))
        return value

    def _step(self) -> None:
        if transforms := self._unrolled.transforms(self.owned):
            for p, g in zip(self.owned, transforms.of_gradients([p.grad for p in self.owned]), strict=True):
                p.grad = None if g is None else g.detach()
        for optimizer in self.optimizers:
            optimizer.step()
        if transforms.parameter:
            with torch.no_grad():
                for i, p in enumerate(self.owned):
                    p.copy_(transforms.of_parameter(p, i))
