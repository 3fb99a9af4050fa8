"""The derivative of the result with respect to what is the user's."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..evaluation.evaluate import Evaluation


class Sensitivity:
    """The derivative of the result with respect to what is the user's, gathered by the reverse sweep.

    Attributes:
        surrogates: scalars whose own gradient is a part of it, for graphs made before the call.
        edge: the nodes that hand it over to these graphs.
        first_term: whether ``g_loss`` depends on anything outside D.
        second_term: whether ``d_loss`` does, in a way that matters to ``g_loss``.
        through_d: whether ``g_loss`` depends on what moves in D.
    """

    def __init__(self) -> None:
        self.surrogates: list[Tensor] = []
        self.edge: list[Any] = []
        self.first_term = self.second_term = self.through_d = False
        self._sums: dict[int, tuple[Tensor, Tensor]] = {}

    def add(self, users: Sequence[Tensor], grads: Sequence[Tensor | None]) -> bool:
        """Add the gradients of tensors of the user's.

        Returns:
            Whether any of them is more than a leaf of the loss's own, such as a gradient penalty makes.
        """
        reached = False
        for tensor, grad in zip(users, grads, strict=True):
            if grad is not None:
                reached |= tensor.grad_fn is not None or isinstance(tensor, nn.Parameter) or id(tensor) in self._sums
                so_far = self._sums.get(id(tensor))
                self._sums[id(tensor)] = tensor, grad if so_far is None else so_far[1] + grad
        return reached

    def through(self, surrogate: Tensor, evaluation: Evaluation) -> None:
        """Add what a scalar depends on by graphs made before the call.

        The user's backward pass goes through them later, and leaves gradients wherever they end. If that is D as well,
        which is not to have any, the ends that are meant get theirs now.
        """
        if not evaluation.stale:
            self.surrogates.append(surrogate)
        elif ends := [t for t in evaluation.behind if t.requires_grad]:
            self.add(ends, torch.autograd.grad(surrogate, ends, allow_unused=True, retain_graph=True))

    def tensors(self) -> list[Tensor]:
        """All that the gradient is made of."""
        return [*(g for _, g in self._sums.values()), *self.surrogates]

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Tensors of the user's with the gradient of each."""
        return iter(self._sums.values())
