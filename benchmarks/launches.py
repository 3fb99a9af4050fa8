"""Operator calls that do work in an inner step, there and back: what decides on an accelerator, and free of noise.

A dispatch mode sees every call below autograd. Views, allocations and questions about a shape start no kernel, so they
are not counted. What begins and ends a call is left out, by the difference of two numbers of steps.
"""

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

from nets import Setup
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# What starts no kernel, beside the operators that torch itself knows as views.
FREE = {"detach", "alias", "_unsafe_view", "lift_fresh", "is_same_size", "_has_same_storage_numel", "set_"}
FREE |= {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
# What brings numbers from the device to Python, which waits for them there; the second kind is not seen below autograd.
READS = {"_local_scalar_dense", "equal", "allclose", "is_nonzero"}
READS_OF_MANY = {Tensor.tolist, Tensor.numpy}
# Of a step there and back.
AT_MOST = {"ring": 90, "cifar10": 300}
# Two numbers of steps, each with a first step and a last one.
FEW, MANY = 3, 8


class Counting(TorchDispatchMode):
    """The number of calls that start a kernel by the name of the operator, and how often numbers are read."""

    def __init__(self) -> None:
        super().__init__()
        self.work: Counter[str] = Counter()
        self.reads = 0
        self._above = _Above(self)

    def __enter__(self) -> "Counting":
        self._above.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._above.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.reads += name in READS
        if not (func.is_view or name in FREE or name in READS):
            self.work[name] += 1
        return func(*args, **(kwargs or {}))


class _Above(TorchFunctionMode):
    def __init__(self, counting: Counting) -> None:
        super().__init__()
        self._counting = counting

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._counting.reads += func in READS_OF_MANY
        return func(*args, **(kwargs or {}))


def count(function: Callable[[], Any]) -> Counting:
    """Of a second call: the first may find out what it remembers."""
    function()
    with Counting() as counting:
        function()
    return counting


def per_step(make: Callable[[Setup, int], Callable[[], Any]], setup: Setup) -> tuple[float, float]:
    """Launches and reads of one inner step of a contender."""
    few, many = (count(make(setup, k)) for k in (FEW, MANY))
    return (many.work.total() - few.work.total()) / (MANY - FEW), (many.reads - few.reads) / (MANY - FEW)


def of_all(
    contenders: dict[str, Any], others: dict[str, Any], made: Callable[[], Setup], compiled: str
) -> dict[str, int | None]:
    """Launches of each; None of what is not done by torch, or in compiled functions, where none is seen.

    An error of another library, which may not stand a mode of torch's, is printed; one of ours is raised.
    """
    found: dict[str, int | None] = {}
    for name, make in (contenders | others).items():
        try:
            found[name] = None if compiled in name else round(per_step(make, made())[0]) or None
        except Exception as error:
            if name not in others:
                raise
            print(f"{name}: launches not counted, {type(error).__name__}: {error}", file=sys.stderr)
            found[name] = None
    return found


def targets(name: str, counted: dict[str, int | None]) -> list[dict[str, Any]]:
    """Of the package's default; the only targets that another load on the machine cannot miss."""
    found, at_most = counted["Store"], AT_MOST.get(name)
    if found is None or at_most is None:
        return []
    return [{"target": "Store, launches a step", "found": found, "at_most": at_most, "met": found <= at_most}]
