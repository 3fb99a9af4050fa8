"""Gradient clipping for ``grad_transform``: what a loop does between ``backward()`` and ``step()``, differentiably."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class clip_grad_norm:  # noqa: N801
    """g ← g · min(1, max_norm / (‖all g‖ + 1e-6)), for a loop that calls ``torch.nn.utils.clip_grad_norm_``.

    It is for D's parameters together, in each inner step:

        UnrolledGeneratorLoss(D, opt_D, *hinge, grad_transform=clip_grad_norm(1.0))

    Args:
        max_norm: the same as in the loop.
        norm_type: of the norm; ``float("inf")`` for the largest entry.

    Raises:
        ValueError: a bound that is not a positive number.
    """

    max_norm: float
    norm_type: float = 2.0

    def __post_init__(self) -> None:
        _check("max_norm", self.max_norm)
        _check("norm_type", self.norm_type)

    def __call__(self, grads: Sequence[Tensor]) -> list[Tensor]:
        """The gradients, shortened together if they are too long."""
        if not grads:
            return []
        norms = [torch.linalg.vector_norm(g, self.norm_type).to(grads[0].device) for g in grads]
        factor = (self.max_norm / (torch.linalg.vector_norm(torch.stack(norms), self.norm_type) + 1e-6)).clamp(max=1.0)
        return [g * factor.to(g.device) for g in grads]


@dataclass(frozen=True)
class clip_grad_value:  # noqa: N801
    """g ← min(max(g, -clip_value), clip_value), for a loop that calls ``torch.nn.utils.clip_grad_value_``.

    Args:
        clip_value: the same as in the loop.

    Raises:
        ValueError: a bound that is not a positive number.
    """

    clip_value: float

    def __post_init__(self) -> None:
        _check("clip_value", self.clip_value)

    def __call__(self, grads: Sequence[Tensor]) -> list[Tensor]:
        """The gradients, each of their entries within the bound."""
        return [g.clamp(-self.clip_value, self.clip_value) for g in grads]


def _check(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ValueError(f"{name} is {value!r:.100}. Pass a positive number, such as clip_grad_norm(1.0).")
