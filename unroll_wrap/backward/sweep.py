"""K steps forwards, then the cotangent backwards through them: the one loop that every backward shares."""

from typing import Any, Protocol

from torch import Tensor

from ..rules.block import Block
from ..rules.update import plus
from ..unroll import Point, Unroll


class Backward(Protocol):
    """How the second term of Eq. 12 is computed."""

    def step(self, unroll: Unroll, point: Point, k: int) -> tuple[Point, Any]:
        """The next point, and a record from which ``pullback`` can find its way back."""
        ...

    def pullback(self, unroll: Unroll, record: Any, cotangent: list[Block], first: bool) -> list[Block] | None:
        """The cotangent of the point that the step started from; None for the ``first`` step, where nobody asks."""
        ...


def sweep(unroll: Unroll, start: Point, steps: int, average: bool, backward: Backward) -> Tensor:
    """The value of ``g_loss`` after ``steps`` inner steps; its derivative is left in ``unroll.sensitivity``.

    Args:
        unroll: the losses and what they run on.
        start: the discriminator and its optimizer as they are.
        steps: K >= 1.
        average: the mean of ``g_loss`` over θ^1..θ^K instead of its value at θ^K.
        backward: how to come back.
    """
    reverse = unroll.differentiate and not unroll.stop_gradient
    point, records, terms = start, [], []
    for k in range(steps):
        if reverse:
            point, record = backward.step(unroll, point, k)
        else:
            (point, _), record = unroll.step(point, k, differentiable=False), None
        last = k == steps - 1
        term = unroll.generator_term(point, 1 / steps if average else 1.0) if average or last else None
        records.append((record, None if term is None else term[1]))
        if term is not None:
            terms.append(term[0])
    cotangent: list[Block] | None = None
    while reverse and records:
        record, more = records.pop()
        if more is not None:
            cotangent = more if cotangent is None else plus(cotangent, more)
        assert cotangent is not None
        cotangent = backward.pullback(unroll, record, cotangent, first=not records)
    return sum(terms[1:], terms[0])
