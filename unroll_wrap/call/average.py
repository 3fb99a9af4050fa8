"""The points of the inner optimization at which the returned loss is taken, and their weights."""

from dataclasses import dataclass
from math import isfinite

from ..messages import described


@dataclass(frozen=True)
class Extrapolate:
    """loss(θ^0) + factor · (loss(θ^K) - loss(θ^0)): the direction of the steps, taken further or less far.

    With K = 1 and a factor above 1 it approximates a larger K at the price of one step. Its value at θ^0 is the plain
    loss, so the gradient is that of the plain loss plus ``factor`` times what unrolling changes of it.

    Args:
        factor: any finite number; 1 is the unrolled loss, and 0 the plain one.

    Examples:
        >>> D, real, fake = torch.nn.Linear(2, 1), torch.randn(8, 2), torch.randn(8, 2, requires_grad=True)
        >>> def loss(steps, average=False):
        ...     opt_D = torch.optim.SGD(D.parameters(), 0.5)
        ...     return unroll_wrap.UnrolledGeneratorLoss(D, opt_D, steps=steps, average=average)(real, fake)
        >>> plain, unrolled = loss(steps=0), loss(steps=1)
        >>> torch.allclose(loss(steps=1, average=unroll_wrap.Extrapolate(3.0)), plain + 3 * (unrolled - plain))
        True
    """

    factor: float

    def __post_init__(self) -> None:
        if isinstance(self.factor, bool) or not isinstance(self.factor, (int, float)) or not isfinite(self.factor):
            raise ValueError(f"Extrapolate(factor={self.factor!r}). Pass a finite number, such as 2.0.")


Average = bool | Extrapolate


def weights_of(average: Average, steps: int) -> dict[int, float]:
    """Return the weight of the loss at each θ^k that counts, by k; the weights add up to 1."""
    if isinstance(average, Extrapolate):
        weights = {0: 1 - average.factor, steps: average.factor} if steps else {0: 1.0}
        return {k: w for k, w in weights.items() if w or k == steps}
    if average and steps:
        return dict.fromkeys(range(1, steps + 1), 1 / steps)
    return {steps: 1.0}


def check_average(average: object) -> None:
    """Raise TypeError unless ``average`` is True, False or an ``Extrapolate``."""
    if not isinstance(average, (bool, Extrapolate)):
        raise TypeError(f"average is {described(average)}. Pass True, False, or Extrapolate(factor).")
