"""K real steps of the real optimizer, all of which is put back afterwards."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from . import guards
from .arguments import cut
from .checkpoints import in_place
from .live import Snapshot
from .loss import UnrolledGeneratorLoss
from .rules.family import stepped
from .swap import Swap, aside


class Rehearsal:
    """``g_loss`` after K steps of the user's own optimizers, and everything as it was before.

    Args:
        unrolled: the loss, for D, optimizers and transforms.
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
        unrolled: UnrolledGeneratorLoss,
        d_loss: Callable[..., Tensor],
        g_loss: Callable[..., Tensor],
        batch: tuple[Any, ...],
        inner: Sequence[tuple[Any, ...]],
        kwargs: dict[str, Any],
        constant: int,
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
        self.values = []
        swap, values = Swap(self.modules, self.owned), []
        # What a checkpoint runs again has to be in that context too.
        again = nullcontext() if around is nullcontext else in_place(swap, ())
        stepped_by = [p for o in self.optimizers for p in stepped(o)]
        with Snapshot([*self.optimizers, *self.owned]), swap, aside(self.owned), guards.unrolling(), again:
            for p in stepped_by:
                p.grad = None
            swap.put(self.owned, swap.originals())
            for k, batch in enumerate(self._inner):
                with nullcontext() if k < self._constant else shifted():
                    loss = self._evaluate(f"d_loss at inner step {k}", self._d_loss, batch, around("d_loss"))
                    self._step(loss)
                if self._unrolled.average or k == len(self._inner) - 1:
                    values.append(self._g(shifted, around))
            return sum(values) / len(values) if values else self._g(shifted, around)

    def _g(self, shifted: Any, around: Any) -> float:
        with shifted():
            return self._evaluate("g_loss", self._g_loss, self._batch, around("g_loss")).item()

    def _evaluate(self, name: str, loss: Any, batch: tuple[Any, ...], around: Any) -> Tensor:
        # Not under no_grad: a loss may take gradients inside.
        stand_ins = cut(batch, self._kwargs)
        with torch.enable_grad(), around:
            value = loss(self._unrolled.discriminator, *stand_ins.batch, **stand_ins.kwargs)
        self.values.append((name, value.item()))
        return value

    def _step(self, loss: Tensor) -> None:
        grads = list(torch.autograd.grad(loss, self.owned, allow_unused=True))
        present = [i for i, g in enumerate(grads) if g is not None]
        if self._unrolled.grad_transform:
            for i, g in zip(present, self._unrolled.grad_transform([grads[i] for i in present]), strict=True):
                grads[i] = g
        for p, g in zip(self.owned, grads, strict=True):
            p.grad = None if g is None else g.detach()
        for optimizer in self.optimizers:
            optimizer.step()
        if self._unrolled.param_transform:
            with torch.no_grad():
                for p in self.owned:
                    p.copy_(self._unrolled.param_transform(p))
