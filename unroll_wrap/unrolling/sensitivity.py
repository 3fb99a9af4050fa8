"""The accumulated derivative of the result with respect to the user's tensors."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..call.runs import run_of
from ..evaluation.evaluation import Evaluation


class Sensitivity:
    """The derivative of the result with respect to the user's tensors, accumulated by the reverse sweep.

    Args:
        ignored: tensors, by id, that a loss itself has made require grad, as a gradient penalty does.
    """

    def __init__(self, ignored: Mapping[int, Tensor] | None = None) -> None:
        self._ignored = {} if ignored is None else ignored
        # Scalars whose gradients complete the derivative, through graphs made before the call.
        self.surrogates: list[Tensor] = []
        self.edge: list[Any] = []  # The nodes of the losses that pass gradients on to these graphs.
        self.first_term = False  # Whether ``g_loss`` depends on a tensor outside D.
        self.second_term = False  # Whether ``d_loss`` depends on one, and ``g_loss`` on it through D's steps.
        self.through_d = False  # Whether ``g_loss`` depends on the parameters that move.
        self._sums: dict[int, tuple[Tensor, Tensor]] = {}

    def add(self, users: Sequence[Tensor], grads: Sequence[Tensor | None]) -> bool:
        """Add gradients with respect to the user's tensors.

        Returns:
            Whether any of these tensors is more than a leaf that the loss itself made, as for a gradient penalty.
        """
        reached = False
        for tensor, grad in zip(users, grads, strict=True):
            if grad is not None and id(tensor) not in self._ignored:
                reached |= tensor.grad_fn is not None or isinstance(tensor, nn.Parameter) or id(tensor) in self._sums
                so_far = self._sums.get(id(tensor))
                self._sums[id(tensor)] = tensor, grad if so_far is None else so_far[1] + grad
        return reached

    def depends(self, users: Sequence[Tensor], grads: Sequence[Tensor | None]) -> bool:
        """Return whether there is a gradient with respect to any of the user's tensors that count."""
        return any(g is not None and id(t) not in self._ignored for t, g in zip(users, grads, strict=True))

    def through(self, surrogate: Tensor, evaluation: Evaluation) -> None:
        """Add the derivative of a scalar through graphs made before the call.

        The user's backward pass will go through them and leave gradients at all of their leaves. If some of these are
        D's, which must not receive any, the gradients of the other leaves are computed now instead.
        """
        if not evaluation.stale:
            self.surrogates.append(surrogate)
            # The loss of a call around this one will reach that graph.
            if run := run_of(evaluation.params[0]):
                run.closed = False
        elif ends := [t for t in evaluation.behind if t.requires_grad]:
            self.add(ends, torch.autograd.grad(surrogate, ends, allow_unused=True, retain_graph=True))

    def tensors(self) -> list[Tensor]:
        """Return all tensors that the derivative consists of."""
        return [*(g for _, g in self._sums.values()), *self.surrogates]

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over the user's tensors, each with its gradient."""
        return iter(self._sums.values())
