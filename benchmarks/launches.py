"""Operator calls that do work in an inner step, there and back: what decides on an accelerator, and free of noise.

A dispatch mode sees every call below autograd. Views, allocations and questions about a shape start no kernel, so they
are not counted. Setting up a call and its ``g_loss`` are left out, by the difference of two numbers of steps.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from nets import Setup
from torch.utils._python_dispatch import TorchDispatchMode

# What starts no kernel, beside the operators that torch itself knows as views.
_FREE = {
    "detach",
    "alias",
    "_unsafe_view",
    "lift_fresh",
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
}
_FREE |= {"is_same_size", "_has_same_storage_numel", "sym_size", "set_", "prim_layout"}
# What brings a number from the device to Python, where the host waits for it.
READS = {"_local_scalar_dense", "is_nonzero", "item", "equal"}
# Two numbers of steps, both of them large enough that the first and the last step are in each.
FEW, MANY = 3, 8


class Counting(TorchDispatchMode):
    """Counts the calls of operators, by name; ``work`` is the number of those that start a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.work = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.calls[name] += 1
        self.work += not (func.is_view or name in _FREE)
        return func(*args, **(kwargs or {}))

    def working(self) -> Counter[str]:
        return Counter({k: n for k, n in self.calls.items() if not (k in _FREE or _is_view(k))})


def _is_view(name: str) -> bool:
    packet = getattr(torch.ops.aten, name, None)
    return packet is not None and any(getattr(packet, o).is_view for o in packet.overloads())


def count(function: Callable[[], Any]) -> Counting:
    function()
    # Calls that remember something about D do so the first time.
    with Counting() as counting:
        function()
    return counting


def per_step(make: Callable[[Setup, int], Callable[[], Any]], setup: Setup) -> float:
    """Launches of one inner step of a contender."""
    few, many = (count(make(setup, k)).work for k in (FEW, MANY))
    return (many - few) / (MANY - FEW)
