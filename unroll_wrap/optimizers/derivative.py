"""Compare the derivative that autograd finds for a transform with differences of the transform's values."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..live.random_state import EveryState
from ..live.snapshot import Snapshot

Transform = Callable[[list[Tensor]], list[Tensor]]

# The relative change of each element: large against rounding in 32 bits, and small against what a transform bends on.
_SHIFT = 2.0**-9
# How far the two may differ: a part of the result itself, and of its root mean square.
_NEAR, _FLOOR = 0.02, 1e-3


def with_derivative(name: str, transform: Transform, given: list[Tensor], roots: Iterable[Any]) -> list[Tensor]:
    """Return the results of a transform after a look at their derivative along one direction.

    At a kink, where a clipped norm reaches its bound, the difference towards one of the two sides has to agree.

    Args:
        name: what a message calls the transform.
        transform: maps a list of tensors to a list of results.
        given: its argument.
        roots: what the transform may keep numbers or tensors on, which more calls must not change.

    Raises:
        ValueError: autograd finds another derivative than differences do.
    """
    if not any(t.requires_grad for t in given):
        return transform(given)
    state = EveryState(given, ())
    before = Snapshot(roots, names=True)
    along = [t.detach() * _uneven(t, i) for i, t in enumerate(given)]

    def shifted(by: float) -> list[Tensor]:
        with before, torch.no_grad(), state.replayed():
            return transform([t.detach() + by * v for t, v in zip(given, along, strict=True)])

    above, same, below = shifted(_SHIFT), shifted(0.0), shifted(-_SHIFT)
    found = transform(given)
    # In 16 bits differences are rounding, and they say nothing if the same call gives something else each time.
    if any(torch.finfo(t.dtype).eps > _SHIFT**1.5 for t in given) or not all(map(torch.equal, same, found)):
        return found
    for up, f, down, derivative in zip(above, same, below, _derivatives(found, given, along), strict=True):
        allowed = _NEAR * f.abs() + _FLOOR * f.abs().square().mean().sqrt()
        differences = (up - f) / _SHIFT, (f - down) / _SHIFT, (up - down) / (2 * _SHIFT)
        near = torch.stack([(d - derivative).abs() <= allowed + _NEAR * d.abs() for d in differences]).any(0)
        # What is not finite is reported as such later.
        if not (near | ~up.isfinite() | ~down.isfinite()).all():
            raise ValueError(
                f"{name} returns a tensor of shape {tuple(f.shape)} whose derivative is not the one that autograd "
                "finds. Leave out .item(), float(), .data, .detach() and no_grad() there, or pass stop_gradient=True "
                "for the first term alone."
            )
    return found


def _uneven(tensor: Tensor, i: int) -> Tensor:
    """Return a factor from 0.5 to 1.5 for each element of the i-th tensor, other ones than its neighbours have.

    Along the tensors themselves, what is homogeneous of degree 0 in them would not change.
    """
    return 1 + 0.5 * (i + torch.arange(tensor.numel(), device=tensor.device)).cos().reshape(tensor.shape)


def _derivatives(found: Sequence[Tensor], given: Sequence[Tensor], along: Sequence[Tensor]) -> list[Tensor]:
    """Return autograd's derivative of each result along a direction: the pullback's own derivative, as it is linear."""
    bars = [torch.zeros_like(f, requires_grad=True) for f in found]
    results = [(f, bar) for f, bar in zip(found, bars, strict=True) if f.requires_grad]
    inputs = [(t, v) for t, v in zip(given, along, strict=True) if t.requires_grad]
    pulled: Sequence[Tensor | None] = [None] * len(inputs)
    if results:
        outputs, weights = zip(*results, strict=True)
        sources = [t for t, _ in inputs]
        pulled = torch.autograd.grad(outputs, sources, weights, create_graph=True, allow_unused=True)
    terms = [(t, v) for t, (_, v) in zip(pulled, inputs, strict=True) if t is not None and t.requires_grad]
    values: Sequence[Tensor | None] = [None] * len(bars)
    if terms:
        values = torch.autograd.grad([t for t, _ in terms], bars, [v for _, v in terms], allow_unused=True)
    return [torch.zeros_like(bar) if d is None else d for bar, d in zip(bars, values, strict=True)]
