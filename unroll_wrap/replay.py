"""The same random draws again."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


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
