"""Examine in a few seconds what works on this machine, for a first look and for bug reports."""

import platform
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..backward import FiniteDifference, Recompute, Store, Truncate
from ..gan import UnrolledGeneratorLoss
from ..objectives import non_saturating
from ..optimizers.read import rule_of
from ..version import __version__
from .verification import Verification
from .verify import verify

# Compiled is left out, because its first call needs a compiler and half a minute.
BACKWARDS: dict[str, dict[str, Any]] = {
    "Store()": {"backward": Store()},
    "Recompute()": {"backward": Recompute()},
    "Truncate(1)": {"backward": Truncate(1)},
    "FiniteDifference()": {"backward": FiniteDifference()},
    "stop_gradient=True": {"stop_gradient": True},
}


@dataclass(frozen=True)
class Report:
    """The findings of the doctor.

    Attributes:
        versions: the versions of the package, torch and Python, and the device and threads, by name.
        optimizers: how each of torch's optimizers is handled, by name: by an exact rule, traced, or refused.
        backwards: the problems that ``verify`` finds on a small net with each backward, by name; empty if none.
        verification: the result of ``verify`` with the default backward.
        seconds: the duration of the examination, in seconds.
    """

    versions: dict[str, str]
    optimizers: dict[str, str]
    backwards: dict[str, str]
    verification: Verification
    seconds: float

    @property
    def well(self) -> bool:
        """Return whether ``verify`` passes with every backward."""
        return not any(self.backwards.values())

    def __str__(self) -> str:
        """Return the report as text for a terminal."""
        exact = [name for name, how in self.optimizers.items() if how == _EXACT]
        others = [f"{name} ({how})" for name, how in self.optimizers.items() if how != _EXACT]
        lines = [f"{name:12}{version}" for name, version in self.versions.items()]
        lines += ["", f"optimizers  exact rule: {', '.join(exact)}"]
        lines += [f"            {other}" for other in others]
        lines += ["            any other torch.optim.Optimizer: its step() is traced", ""]
        rows = [f"{name:20}{problem or 'works'}" for name, problem in self.backwards.items()]
        lines += [f"backwards   {rows[0]}", *(f"            {row}" for row in rows[1:])]
        verdict = "all is well" if self.well else "something is wrong: please report all of this"
        return "\n".join([*lines, "", str(self.verification), "", f"{verdict} ({self.seconds:.1f} s)"])


_EXACT = "exact rule"


def examine() -> Report:
    """Return a report on versions, optimizers, and ``verify`` of a small net with every backward on this device."""
    began = time.perf_counter()
    device = _device()
    found = {name: _verify(device, options) for name, options in BACKWARDS.items()}
    return Report(
        versions={
            "unroll_wrap": __version__,
            "torch": str(torch.__version__),
            "python": f"{platform.python_version()} ({sys.platform}, {platform.machine()})",
            "device": _name(device),
            "threads": str(torch.get_num_threads()),
        },
        optimizers=_optimizers(),
        backwards={name: "; ".join(one.problems) for name, one in found.items()},
        verification=found["Store()"],
        seconds=time.perf_counter() - began,
    )


def _optimizers() -> dict[str, str]:
    kinds = [v for v in vars(torch.optim).values() if isinstance(v, type) and issubclass(v, torch.optim.Optimizer)]
    return {kind.__name__: _verdict(kind) for kind in kinds if kind is not torch.optim.Optimizer}


def _verdict(kind: Callable[..., torch.optim.Optimizer]) -> str:
    """Return how an optimizer class is handled, from an instance for one matrix, which every class accepts."""
    try:
        rule = rule_of(kind([nn.Parameter(torch.zeros(2, 2))]))
    except TypeError as refusal:
        return f"refused: {str(refusal).split(': ', 1)[1].split('. ')[0]}"
    return "traced" if rule is None else _EXACT


def _verify(device: torch.device, options: dict[str, Any]) -> Verification:
    """Verify a small net in float64, if the device has it, with an optimizer that has taken a step."""
    dtype = torch.float32 if device.type == "mps" else torch.float64
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype).to(device)

    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        G = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).to(device, dtype)
        D = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).to(device, dtype)
    opt_D = torch.optim.Adam(D.parameters(), lr=0.03)
    real, fake = drawn(16, 2), G(drawn(16, 4))
    non_saturating.d_loss(D, real, fake.detach()).backward()
    opt_D.step()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unrolled = UnrolledGeneratorLoss(D, opt_D, *non_saturating, steps=3, **options)
        return verify(unrolled, real, fake)


def _device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _name(device: torch.device) -> str:
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type
