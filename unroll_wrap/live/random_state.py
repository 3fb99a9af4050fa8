"""Replay random draws, and restore the buffers of modules other than the discriminator's."""

import pickle
import random
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .undo import Undo, owned

_drawing = threading.RLock()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Run a step that is or will be replayed while no other thread does so: all threads share torch's generators.

    Another thread waits for its turn, but not forever, because the losses of two threads may wait for each other.
    """
    mine = _drawing.acquire(timeout=10.0)
    try:
        yield
    finally:
        if mine:
            _drawing.release()


def keep_turn(undo: Undo) -> None:
    """Give up this thread's turn when that is undone: an interrupt right after it was taken leaves it taken."""
    if owned(_drawing):
        # An unroll around this one has it.
        return

    def give_up() -> None:
        while owned(_drawing):
            _drawing.release()

    undo.later(give_up)


class RandomState:
    """The current state of torch's global generators, on the CPU and on the GPUs of some tensors."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._devices = sorted({t.device.index for t in tensors if t.is_cuda})
        self._states = self._now()

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Repeat the draws from this state within the context, and restore the generators at its end."""
        with torch.random.fork_rng(self._devices):
            self.put_back()
            yield

    def put_back(self) -> None:
        """Let the next draws be those from this state."""
        torch.set_rng_state(self._states[0])
        for device, state in zip(self._devices, self._states[1:], strict=True):
            torch.cuda.set_rng_state(state, device)

    def _now(self) -> list[Tensor]:
        return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, self._devices)]


def same(again: Tensor, loss: Tensor, rounding: float = 0.0, noise: float | None = None) -> Tensor:
    """Return whether a repeated number equals the first one, as a tensor on its device; NaN equals NaN.

    It may differ by ``rounding`` times itself and by ``noise``, which is ``rounding`` too if it is None.
    """
    # Some CUDA kernels sum in another order each time.
    rounding = max(rounding, 1e-4 if loss.is_cuda else 0.0)
    return torch.isclose(again, loss, rtol=rounding, atol=rounding if noise is None else noise, equal_nan=True).all()


class EveryState(RandomState):
    """The state of Python's and numpy's global generators too, and the buffers of a generator.

    A loss that runs the generator updates its statistics and power iterations. This is too slow for every inner step.
    """

    def __init__(self, tensors: Iterable[Tensor], modules: Iterable[nn.Module]) -> None:
        super().__init__(tensors)
        self._others = _others()
        self._buffers = [(b, b.detach().clone()) for m in modules for b in m.buffers()]

    def is_now(self) -> bool:
        """Return whether nothing has been drawn since this state."""
        unmoved = all(map(torch.equal, self._states, self._now()))
        return unmoved and pickle.dumps(self._others) == pickle.dumps(_others())

    def put_back(self) -> None:
        """Let the next draws be those from this state."""
        _put(self._others)
        super().put_back()

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Repeat the draws as RandomState does; differentiate graphs made in this context before it ends."""
        now = _others()
        try:
            with super().replayed():
                yield
        finally:
            _put(now)
            for buffer, before in self._buffers:
                buffer.data.copy_(before)


class _Drawn(EveryState):
    """The state of all random numbers, on the graphics cards in use too."""

    def __init__(self) -> None:
        super().__init__((), ())
        in_use = torch.cuda.is_initialized() and not torch.cuda.is_current_stream_capturing()
        self._devices = list(range(torch.cuda.device_count())) if in_use else []
        self._states = self._now()


@contextmanager
def undrawn_on_error() -> Iterator[None]:
    """Give random numbers their state again if there is an error within the context."""
    drawn = _Drawn()
    try:
        yield
    except BaseException:
        drawn.put_back()
        raise


def _others() -> tuple[Any, Any]:
    numpy = sys.modules.get("numpy")
    return random.getstate(), numpy.random.get_state(legacy=False) if numpy else None


def _put(states: tuple[Any, Any]) -> None:
    random.setstate(states[0])
    if states[1] is not None:
        sys.modules["numpy"].random.set_state(states[1])
