"""``Recompute``: run a step a second time when its graph is needed."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..live.random_state import RandomState, same, undisturbed
from ..optimizers.block import Block
from ..unrolling.one_process import Grads
from ..unrolling.step import Point, Step
from ..unrolling.unroll import Unroll
from .sweep import Backward, Tape


@dataclass(frozen=True)
class Recompute(Backward):
    """For a large D or K: a step takes the time of about four gradients; memory holds activations of ``every`` steps.

    A replayed step draws the same random numbers and sees the same buffers. A loss that changes something it depends on
    (a history of images, a running statistic outside D's buffers) cannot be replayed, which raises an error.

    Args:
        every: the distance between kept points, in steps. With 1, the parameters, optimizer state and buffers of every
            step are kept; with n, those of every n-th step, and the graphs of n steps exist at a time.

    Examples:
        >>> D, real, fake = torch.nn.Linear(2, 1), torch.randn(8, 2), torch.randn(8, 2, requires_grad=True)
        >>> def gradient(backward):
        ...     unrolled = unroll_wrap.UnrolledGeneratorLoss(D, torch.optim.SGD(D.parameters(), 0.5), backward=backward)
        ...     return torch.autograd.grad(unrolled(real, fake), fake)[0]
        >>> torch.allclose(gradient(unroll_wrap.Recompute()), gradient(unroll_wrap.Store()))
        True
    """

    every: int = 1
    second_order = True
    rewinds = True

    def __post_init__(self) -> None:
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise ValueError(f"every is {self.every!r}. Pass a whole number >= 1.")

    def tape(self, unroll: Unroll, first: int, steps: int) -> Tape:
        """Return a tape that keeps the start of each segment of ``every`` steps."""
        return _Segments(unroll, first, self.every)


class _Recorded(NamedTuple):
    """What the replay of a step needs besides its point, and what it has to give again."""

    k: int
    batch: tuple[Any, ...]
    random: RandomState
    loss: Tensor
    length: Tensor | None  # The length of its gradients, in a first call.
    averages: Grads | None


class _Segments(Tape):
    def __init__(self, unroll: Unroll, first: int, every: int) -> None:
        self._unroll = unroll
        self.first = first
        self._every = every
        self._segments: list[tuple[Point, list[_Recorded]]] = []
        self._replayed: list[Step] = []
        # An entry for each loss and length: its name, its value, that of the replay, and whether they are the same.
        self._again: list[tuple[str, Tensor, Tensor, Tensor]] = []

    def step(self, point: Point, k: int) -> Point:
        if k < self.first:
            return self._unroll.advance(point, k)
        point, _, batch = self._unroll.draw(point, k)
        if (k - self.first) % self._every == 0:
            self._segments.append((point, []))
        with undisturbed():
            random = RandomState(self._unroll.evaluate.owned)
            point, step = self._unroll.step(point, k, batch, differentiable=False)
        self._segments[-1][1].append(_Recorded(k, batch, random, step.loss, self._length(step), step.averages))
        return point

    def pullback(self, k: int, cotangent: list[Block]) -> list[Block] | None:
        if not self._replayed:
            self._replay(*self._segments.pop())
        found = self._unroll.pullback(self._replayed.pop(), cotangent, first=k == self.first)
        if k == self.first:
            self._check()
        return found

    def _replay(self, point: Point, recorded: list[_Recorded]) -> None:
        first = recorded[0].k
        for k, batch, random, loss, length, averages in recorded:
            with undisturbed(), random.replayed():
                point, step = self._unroll.step(point, k, batch, differentiable=True, averages=averages)
            self._replayed.append(step)
            again = step.loss
            # The first step of a segment starts from kept parameters. Later ones start from replayed parameters, which
            # were computed by other kernels, for a graph; these round differently, and Adam magnifies the difference.
            rounding = torch.finfo(loss.dtype).eps ** 0.5
            self._again.append((step.name, loss, again, same(again, loss, 0.0 if k == first else rounding)))
            if length is not None and (longer := self._length(step)) is not None:
                name = f"The length of the gradients of {step.name}"
                noise = 10 * torch.finfo(loss.dtype).eps
                self._again.append((name, length, longer, same(longer, length, rounding, noise)))

    def _length(self, step: Step) -> Tensor | None:
        """Return the length of the gradients in a first call, and None in a later one."""
        if not self._unroll.evaluate.first_runs:
            return None
        lengths = [torch.linalg.vector_norm(g.detach()).to(step.loss) for g in step.grads if g is not None]
        return torch.stack(lengths).norm() if lengths else None

    def _check(self) -> None:
        """Raise if a replayed loss is not the same. This waits for the device once, and not once for each step."""
        alike = torch.stack([same.to(self._again[0][3].device) for *_, same in self._again]).tolist()
        for (name, loss, again, _), yes in zip(self._again, alike, strict=True):
            if not yes:
                raise RuntimeError(
                    f"{name} was {loss.item()} and, replayed, {again.item()}: it is not replayable. Either it draws "
                    "random numbers elsewhere than in torch, as with numpy: draw them with torch. Or it changes "
                    "something that it depends on: guard that with unroll_wrap.is_unrolling(), or pass "
                    "backward=Store()."
                )
