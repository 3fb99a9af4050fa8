"""The records of the inner optimization: a point that it has reached, and one step from there."""

from typing import Any, NamedTuple

from torch import Tensor

from ..evaluation.evaluate import Evaluation
from ..operators import Adjoint
from ..optimizers.block import Block
from ..optimizers.update import Update, params_of
from .one_process import Grads


class Point(NamedTuple):
    """A point of the inner optimization.

    Attributes:
        blocks: θ^k and the optimizer's state.
        buffers: D's buffers, frozen parameters and unregistered tensors.
        contents: what D's attributes and containers hold, if the backward rewinds; None otherwise.
    """

    blocks: list[Block]
    buffers: tuple[Tensor, ...]
    contents: Any = None

    def params(self) -> list[Tensor]:
        """Return θ^k as a list of parameters."""
        return params_of(self.blocks)


class Step(NamedTuple):
    """One inner step: from the leaves of ``evaluation`` to the gradients, and from these to ``update.new``.

    Attributes:
        start: the point θ^k.
        evaluation: the run of ``d_loss``.
        grads: the gradients of ``d_loss``, with their graph unless there is an ``adjoint`` or no pullback.
        averages: the averaged gradients that the update used, if there are several ranks.
        update: the update to θ^{k+1}.
        adjoint: differentiates the gradients by formulas; None if these do not cover the whole graph of the loss.
    """

    start: Point
    evaluation: Evaluation
    grads: Grads
    averages: Grads | None
    update: Update
    adjoint: Adjoint | None = None

    @property
    def name(self) -> str:
        """What messages call the loss of this step."""
        return self.evaluation.name

    @property
    def loss(self) -> Tensor:
        """The value of ``d_loss``, without graph."""
        return self.evaluation.loss.detach()
