"""S independent networks in one call: small nets cost the number of calls, which a stack of seeds shares.

Under an optimizer that works element by element (Adam, SGD) and a loss that is the sum of the networks' own, the
networks of a stack train as if each were alone. Losses that average over all entries of D's output average over the
networks too, so that sum is `len(nets)` times such a loss.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class StackedLinear(nn.Module):
    """Y_s = x_s W_s + b_s for every network s, as one product of batches.

    Args:
        layers: The networks' own layers, whose values are copied.
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.detach().T for layer in layers]))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach().unsqueeze(0) for layer in layers]))

    def forward(self, x: Tensor) -> Tensor:
        """From (networks, n, inputs) to (networks, n, outputs)."""
        return torch.baddbmm(self.bias, x, self.weight)


def stack(nets: Sequence[nn.Module]) -> nn.Module:
    """One network for inputs of shape (networks, n, inputs) out of several of one shape.

    Args:
        nets: Sequences of linear layers and of modules without parameters, which see every network's part alike.

    Returns:
        A network with parameters of its own, in the order of the given ones.
    """
    first = nets[0]
    if isinstance(first, nn.Sequential):
        return nn.Sequential(*(stack(layers) for layers in zip(*nets, strict=True)))
    if isinstance(first, nn.Linear):
        return StackedLinear(nets)
    if any(True for _ in first.parameters()):
        raise TypeError(f"{type(first).__name__} cannot be stacked. Known: Linear, and modules without parameters.")
    return first


class Streams:
    """A stream of random numbers for every seed, the one that `torch.manual_seed(seed)` alone would give it.

    What a seed draws does therefore not depend on which seeds are stacked beside it.

    Args:
        seeds: One a network of the stack.
    """

    def __init__(self, seeds: Iterable[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def build(self, make: Callable[[], Any]) -> list[Any]:
        """What `make()`, which draws from torch's global generator, returns in each stream."""
        made = []
        for generator in self.generators:
            with _globally(generator):
                made.append(make())
        return made

    def draw(self, sample: Callable[[torch.Generator], Tensor]) -> Tensor:
        """The stack of `sample(generator)` for each stream."""
        return torch.stack([sample(generator) for generator in self.generators])

    def state_dict(self) -> dict[str, list[Tensor]]:
        """Where every stream stands, for a checkpoint."""
        return {"states": [generator.get_state() for generator in self.generators]}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Puts every stream back."""
        for generator, saved in zip(self.generators, state["states"], strict=True):
            generator.set_state(saved)


@contextmanager
def _globally(generator: torch.Generator):
    """Lets torch's global generator run on from `generator`, and moves this one on as far."""
    before = torch.get_rng_state()
    torch.set_rng_state(generator.get_state())
    try:
        yield
        generator.set_state(torch.get_rng_state())
    finally:
        torch.set_rng_state(before)
