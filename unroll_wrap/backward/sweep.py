"""Take K steps, then pull the cotangent back through them, in one loop that every backward shares."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..optimizers.block import Block
from ..optimizers.update import add_cotangents
from ..unrolling.step import Point
from ..unrolling.unroll import Unroll


class Tape(ABC):
    """The record that one call keeps of its steps. Every backward defines a subclass, and returns instances of it.

    Attributes:
        first: the number of the first step that is differentiated.
    """

    first: int

    @abstractmethod
    def step(self, point: Point, k: int) -> Point:
        """Return θ^{k+1} after a step from θ^k; from step ``first`` on, keep what ``pullback`` needs."""

    @abstractmethod
    def pullback(self, k: int, cotangent: list[Block]) -> list[Block] | None:
        """Pull the cotangent of θ^{k+1} back to θ^k; return None for step ``first``, where it is not needed."""


class Backward(ABC):
    """A way to compute the second term of Eq. 12. Every backward inherits this class.

    Attributes:
        second_order: whether gradients of D are differentiated. If so, attention uses the math kernel, and compiled
            modules and losses run eagerly.
        rewinds: whether losses run at points that the unroll has already passed. If so, what a forward pass leaves in D
            is kept for each point.

    Raises:
        TypeError: a subclass lacks one of these attributes.
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
        """Return a new tape for K = ``steps`` inner steps, of which those from number ``first`` are differentiated."""


def sweep(unroll: Unroll, start: Point, steps: int, weights: Mapping[int, float], backward: Backward) -> Tensor:
    """Return the weighted sum of ``g_loss`` along K = ``steps`` steps, and leave its derivative in the sensitivity.

    ``weights`` has the weight of ``g_loss`` at each θ^k that counts, by k; the last one is K.
    """
    reverse = unroll.differentiate and not unroll.stop_gradient
    tape = backward.tape(unroll, 0 if reverse else steps, steps)
    unroll.ranks.expect(2 * steps - tape.first)
    point, values, terms = start, [], {}
    for k in range(steps + 1):
        if k in weights:
            value, terms[k] = unroll.generator_term(point, weights[k])
            values.append(value)
        if k < steps:
            point = tape.step(point, k)
    cotangent = terms.pop(steps)
    for k in reversed(range(tape.first, steps)):
        found = tape.pullback(k, unroll.ranks.cotangent(cotangent))
        if found is None:
            break
        cotangent = add_cotangents(found, terms.pop(k)) if k in terms else found
    unroll.finish([cotangent, *terms.values()])
    return sum(values[1:], values[0])
