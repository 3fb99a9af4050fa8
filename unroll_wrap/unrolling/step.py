"""Where the inner optimization stands, and one step of it."""

from typing import Any, NamedTuple

from torch import Tensor

from ..evaluation.evaluate import Evaluation
from ..optimizers.block import Block
from ..optimizers.update import Update, params_of
from .one_process import Grads


class Point(NamedTuple):
    """Where the inner optimization stands: θ^k with the optimizer's state, and D's buffers."""

    blocks: list[Block]
    buffers: tuple[Tensor, ...]
    contents: Any = None

    def params(self) -> list[Tensor]:
        """θ^k, parameter by parameter."""
        return params_of(self.blocks)


class Step(NamedTuple):
    """One inner step: from the leaves of ``evaluation`` to the gradients, with their graph, and to ``update.new``.

    Attributes:
        start: θ^k.
        evaluation: of ``d_loss``.
        grads: of it, with their graph.
        averages: the gradients that the update went by, where they are those of several ranks.
        update: to θ^{k+1}.
    """

    start: Point
    evaluation: Evaluation
    grads: Grads
    averages: Grads | None
    update: Update
