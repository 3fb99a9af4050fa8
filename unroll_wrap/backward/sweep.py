"""K steps forwards, then the cotangent backwards through them: the one loop that every backward shares."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from ..optimizers.block import Block
from ..optimizers.update import plus
from ..unrolling.step import Point
from ..unrolling.unroll import Unroll


class Tape(ABC):
    """What one call remembers of its steps: a backward returns a class of its own that inherits this one.

    Attributes:
        first: the first step that is differentiated.
    """

    first: int

    @abstractmethod
    def step(self, point: Point, k: int) -> Point:
        """θ^k → θ^{k+1}; from ``first`` on remembered in such a way that ``pullback`` can return."""

    @abstractmethod
    def pullback(self, k: int, cotangent: list[Block]) -> list[Block] | None:
        """The cotangent of θ^k from that of θ^{k+1}; None for the first step, where nobody asks for it."""


class Backward(ABC):
    """How the second term of Eq. 12 is computed: every backward inherits this class.

    Attributes:
        second_order: whether gradients of D's are differentiated. Attention then runs by the math kernel, and what is
            compiled runs eagerly.
        rewinds: whether losses run at points that training has passed already, so that what a forward pass leaves in D
            has to be kept for each point.

    Raises:
        TypeError: the class does not say what these two are.
    """

    second_order: bool
    rewinds: bool

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in ("second_order", "rewinds"):
            if not hasattr(cls, name):
                raise TypeError(
                    f"{cls.__name__} is a Backward without {name}. Say in its class whether it is True or False."
                )

    @abstractmethod
    def tape(self, unroll: Unroll, first: int, steps: int) -> Tape:
        """A fresh tape for all K = ``steps`` inner steps, of which those from ``first`` on are differentiated."""


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
    tape = backward.tape(unroll, 0 if reverse else steps, steps)
    unroll.ranks.expect(steps + steps - tape.first)
    point, values, terms = start, [], {}
    for k in range(steps):
        point = tape.step(point, k)
        if average or k == steps - 1:
            value, terms[k] = unroll.generator_term(point, 1 / steps if average else 1.0)
            values.append(value)
    cotangent = terms.pop(steps - 1)
    for k in reversed(range(tape.first, steps)):
        found = tape.pullback(k, unroll.ranks.cotangent(cotangent))
        if found is None:
            break
        cotangent = plus(found, terms.pop(k - 1)) if k - 1 in terms else found
    return sum(values[1:], values[0])
