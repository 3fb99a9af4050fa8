"""The same again: random draws, and the buffers of modules that are not the discriminator's."""

import pickle
import random
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_drawing = threading.RLock()


@contextmanager
def undisturbed() -> Iterator[None]:
    """A step that is going to be replayed, or is being so: torch's generators are those of the whole process.

    Another thread that unrolls with replays waits for its turn; not for ever, because its loss may be waiting for ours.
    """
    mine = _drawing.acquire(timeout=10.0)
    try:
        yield
    finally:
        if mine:
            _drawing.release()


class RandomState:
    """Torch's global generators as they are now, on the CPU and on the devices of some tensors."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._devices = sorted({t.device.index for t in tensors if t.is_cuda})
        self._cpu = torch.get_rng_state()
        self._cuda = [torch.cuda.get_rng_state(d) for d in self._devices]

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Draw again what was drawn from here; afterwards the generators are where they were."""
        with torch.random.fork_rng(self._devices):
            torch.set_rng_state(self._cpu)
            for device, state in zip(self._devices, self._cuda, strict=True):
                torch.cuda.set_rng_state(state, device)
            yield


def same(again: Tensor, loss: Tensor, rounding: float = 0.0) -> Tensor:
    """Whether a loss that ran again gave what it gave before, on the loss's device; NaN is NaN."""
    # Some CUDA kernels add in another order each time.
    rounding = max(rounding, 1e-4 if loss.is_cuda else 0.0)
    return torch.isclose(again, loss, rtol=rounding, atol=rounding, equal_nan=True).all()


class EveryState(RandomState):
    """The global generators of Python and numpy too, from which some losses draw, and the buffers of a generator.

    A loss that runs the generator moves its statistics and power iterations. Too dear for every inner step.
    """

    def __init__(self, tensors: Iterable[Tensor], modules: Iterable[nn.Module]) -> None:
        super().__init__(tensors)
        self._others = _others()
        self._buffers = [(b, b.detach().clone()) for m in modules for b in m.buffers()]

    def is_now(self) -> bool:
        """Whether nothing has been drawn since."""
        cuda = [torch.cuda.get_rng_state(d) for d in self._devices]
        torchs = all(map(torch.equal, [self._cpu, *self._cuda], [torch.get_rng_state(), *cuda]))
        return torchs and pickle.dumps(self._others) == pickle.dumps(_others())

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """As in RandomState; what is differentiated in it has to be so before it ends."""
        now = _others()
        _put(self._others)
        try:
            with super().replayed():
                yield
        finally:
            _put(now)
            for buffer, before in self._buffers:
                buffer.data.copy_(before)


def _others() -> tuple[Any, Any]:
    numpy = sys.modules.get("numpy")
    return random.getstate(), numpy.random.get_state() if numpy else None


def _put(states: tuple[Any, Any]) -> None:
    random.setstate(states[0])
    if states[1] is not None:
        sys.modules["numpy"].random.set_state(states[1])
