"""The records of the inner optimization: a point that it has reached, and one step from there."""

from typing import Any, NamedTuple

from torch import Tensor

from ..evaluation.evaluation import Evaluation
from ..operators.adjoint import Adjoint
from ..optimizers.block import Block
from ..optimizers.update import Update, params_of
from .one_process import Grads


class Point(NamedTuple):
    """A point of the inner optimization."""

    blocks: list[Block]  # θ^k and the optimizer's state.
    buffers: tuple[Tensor, ...]  # D's buffers, frozen parameters and unregistered tensors.
    contents: Any = None  # What D's attributes and containers hold, if the backward rewinds; None otherwise.

    def params(self) -> list[Tensor]:
        """Return θ^k as a list of parameters."""
        return params_of(self.blocks)


class Step(NamedTuple):
    """One inner step: from the leaves of ``evaluation`` to the gradients, and from these to ``update.new``."""

    start: Point  # The point θ^k.
    evaluation: Evaluation  # The run of ``d_loss``.
    grads: Grads  # The gradients of ``d_loss``, with their graph unless there is an ``adjoint`` or no pullback.
    averages: Grads | None  # The averaged gradients that the update used, if there are several ranks.
    update: Update  # The update to θ^{k+1}.
    # Differentiates the gradients by formulas; None if these do not cover the whole graph of the loss.
    adjoint: Adjoint | None = None

    @property
    def name(self) -> str:
        """What messages call the loss of this step."""
        return self.evaluation.name

    @property
    def loss(self) -> Tensor:
        """The value of ``d_loss``, without graph."""
        return self.evaluation.loss.detach()
