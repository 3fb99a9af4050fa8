"""Compare the derivative that autograd finds for a transform with differences of the transform's values."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..live.random_state import EveryState
from ..live.snapshot import Snapshot
from ..torch_private import FunctionMode, pytree

Transform = Callable[[list[Tensor]], list[Tensor]]

# The relative change of each element: large against rounding, and small against what a transform bends on. In 64 bits
# it is smaller than the distance from one element to the next in size, by which quantiles and the largest k bend.
_SHIFTS = ((2.0**-52, 2.0**-26), (2.0**-23, 2.0**-9))
# What takes values out of torch, besides functions that return a number.
_READERS = {"numpy", "__array__", "tolist"}
# How far the two may differ: a part of the result itself, and of its root mean square.
_NEAR, _FLOOR = 0.02, 1e-3


def check_derivative(name: str, transform: Transform, given: Sequence[Tensor], roots: Iterable[Any]) -> None:
    """Raise if autograd finds another derivative of a transform than differences do, along one direction.

    At a kink, where a clipped norm reaches its bound, the difference towards one of the two sides has to agree.

    Args:
        name: what a message calls the transform.
        transform: maps a list of tensors to a list of results.
        given: its argument.
        roots: what the transform may keep numbers or tensors on, which more calls must not change.

    Raises:
        ValueError: they differ.
    """
    if not any(t.requires_grad for t in given):
        return
    run = _Runs(transform, given, Snapshot(roots, names=True))
    try:
        wrong = run.wrong([t.detach().double() for t in given])
    except (RuntimeError, TypeError, ValueError, AssertionError):  # Not every device or transform takes 64 bits.
        wrong = run.wrong([t.detach() for t in given])
    if wrong:
        raise ValueError(
            f"{name} returns a tensor of shape {wrong[0]} whose derivative is not the one that autograd finds. Leave "
            "out .item(), float(), .data, .detach() and no_grad() there, as well as torch.nn.utils.get_total_norm and "
            "clip_grad_norm_, which have no derivative: unroll_wrap.clip_grad_norm(1.0) has one. Or pass "
            "stop_gradient=True for the first term alone."
        )


class _Runs:
    """Repeated runs of a transform, each from the same state."""

    def __init__(self, transform: Transform, given: Sequence[Tensor], before: Snapshot) -> None:
        self._transform = transform
        self._state = EveryState(given, ())
        self._before = before

    def wrong(self, given: Sequence[Tensor]) -> list[tuple[int, ...]]:
        """Return the shapes of the results whose derivative is not that of differences."""
        along = [t * _uneven(t, i) for i, t in enumerate(given)]
        coarsest = _Coarsest(torch.finfo(t.dtype).eps for t in given)
        with self._before, torch.enable_grad(), self._state.replayed():
            leaves = [t.clone().requires_grad_() for t in given]
            with coarsest:
                found = self._transform(list(leaves))
            derivatives = _derivatives(found, leaves, along)
        found = [f.detach() for f in found]
        shift = next((shift for eps, shift in _SHIFTS if coarsest.eps <= eps), None)
        # In 16 bits differences are rounding, and they say nothing if the same call gives something else each time.
        if shift is None or not all(map(torch.equal, found, self._shifted(given, along, 0.0))):
            return []
        above, below = self._shifted(given, along, shift), self._shifted(given, along, -shift)
        wrong: list[tuple[int, ...]] = []
        for up, f, down, derivative in zip(above, found, below, derivatives, strict=True):
            allowed = _NEAR * f.abs() + _FLOOR * f.abs().square().mean().sqrt()
            differences = (up - f) / shift, (f - down) / shift, (up - down) / (2 * shift)
            near = torch.stack([(d - derivative).abs() <= allowed + _NEAR * d.abs() for d in differences]).any(0)
            # What is not finite is reported as such later; and the derivative of a derivative may not be, alone.
            if not (near | ~up.isfinite() | ~down.isfinite() | ~derivative.isfinite()).all():
                wrong.append(tuple(f.shape))
        return wrong

    def _shifted(self, given: Sequence[Tensor], along: Sequence[Tensor], by: float) -> list[Tensor]:
        # A transform may differentiate something itself, so gradients are on.
        with self._before, torch.enable_grad(), self._state.replayed():
            leaves = [(t + by * v).requires_grad_() for t, v in zip(given, along, strict=True)]
            return [f.detach() for f in self._transform(leaves)]


class Way(FunctionMode):
    """A mode that notes which of torch's functions run, and whether they read a number."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.reads = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", str(func))
        name = getattr(getattr(func, "__self__", None), "__name__", name) if name == "__get__" else name
        self.names.append(name if torch.is_grad_enabled() else f"{name} without grad")
        self.reads |= isinstance(out, float) or name in _READERS
        return out


class _Coarsest(FunctionMode):
    """A mode that notes the coarsest numbers that a transform computes with."""

    def __init__(self, eps: Iterable[float]) -> None:
        super().__init__()
        self.eps = max(eps)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in pytree.tree_leaves(out):
            if isinstance(t, Tensor) and t.is_floating_point():
                self.eps = max(self.eps, torch.finfo(t.dtype).eps)
        return out


def _uneven(tensor: Tensor, i: int) -> Tensor:
    """Return a factor from 0.5 to 1.5 for each element of the i-th tensor, other ones than its neighbours have.

    Along the tensors themselves, what is homogeneous of degree 0 in them would not change.
    """
    count = torch.arange(tensor.numel(), dtype=torch.float32, device=tensor.device)
    return 1 + 0.5 * (i + count).cos().reshape(tensor.shape)


def _derivatives(found: Sequence[Tensor], given: Sequence[Tensor], along: Sequence[Tensor]) -> list[Tensor]:
    """Return autograd's derivative of each result along a direction: the pullback's own derivative, as it is linear."""
    bars = [torch.zeros_like(f, requires_grad=True) for f in found]
    results = [(f, bar) for f, bar in zip(found, bars, strict=True) if f.requires_grad]
    pulled: Sequence[Tensor | None] = [None] * len(given)
    if results:
        outputs, weights = zip(*results, strict=True)
        pulled = torch.autograd.grad(outputs, given, weights, create_graph=True, allow_unused=True)
    terms = [(t, v) for t, v in zip(pulled, along, strict=True) if t is not None and t.requires_grad]
    values: Sequence[Tensor | None] = [None] * len(bars)
    if terms:
        values = torch.autograd.grad([t for t, _ in terms], bars, [v for _, v in terms], allow_unused=True)
    return [torch.zeros_like(bar) if d is None else d for bar, d in zip(bars, values, strict=True)]
