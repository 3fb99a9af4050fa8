"""Differentiable gradient clipping for ``grad_transform``, as a loop does it between ``backward()`` and ``step()``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class clip_grad_norm:  # noqa: N801
    """g ← g · min(1, max_norm / (‖all g‖ + 1e-6)), for a loop that calls ``torch.nn.utils.clip_grad_norm_``.

    The norm is that of all gradients of D together, in each inner step:

        UnrolledGeneratorLoss(D, opt_D, *hinge, grad_transform=clip_grad_norm(1.0))

    Args:
        max_norm: the bound on the norm, the same as in the loop.
        norm_type: p of the p-norm; ``float("inf")`` for the largest entry.

    Raises:
        ValueError: ``max_norm`` or ``norm_type`` is not a positive number.
    """

    max_norm: float
    norm_type: float = 2.0

    def __post_init__(self) -> None:
        _check("max_norm", self.max_norm)
        _check("norm_type", self.norm_type)

    def __call__(self, grads: Sequence[Tensor]) -> list[Tensor]:
        """Return the gradients, all multiplied by the same factor if their norm exceeds ``max_norm``."""
        if not grads:
            return []
        norms = [torch.linalg.vector_norm(g, self.norm_type).to(grads[0].device) for g in grads]
        factor = (self.max_norm / (torch.linalg.vector_norm(torch.stack(norms), self.norm_type) + 1e-6)).clamp(max=1.0)
        return [g * factor.to(g.device) for g in grads]


@dataclass(frozen=True)
class clip_grad_value:  # noqa: N801
    """g ← min(max(g, -clip_value), clip_value), for a loop that calls ``torch.nn.utils.clip_grad_value_``.

    Args:
        clip_value: the bound on the absolute value of each entry, the same as in the loop.

    Raises:
        ValueError: ``clip_value`` is not a positive number.
    """

    clip_value: float

    def __post_init__(self) -> None:
        _check("clip_value", self.clip_value)

    def __call__(self, grads: Sequence[Tensor]) -> list[Tensor]:
        """Return the gradients with each entry clamped to the bound."""
        return [g.clamp(-self.clip_value, self.clip_value) for g in grads]


def _check(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ValueError(f"{name} is {value!r:.100}. Pass a positive number, such as {name}=1.0.")
