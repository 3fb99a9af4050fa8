"""Proof in the user's own loop: the unrolled loss against real optimizer steps and differences of them."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from . import guards
from .arguments import tensors_in
from .loss import UnrolledGeneratorLoss
from .replay import RandomState
from .rules.replica import parameters, put_together, take_apart
from .swap import Swap


@dataclass(frozen=True)
class Slope:
    """The derivative along one direction.

    Attributes:
        surrogate: by the unrolled loss.
        difference: by differences of real optimizer steps.
        uncertainty: of the difference, from rounding and from the spread over step lengths.
    """

    surrogate: float
    difference: float
    uncertainty: float

    @property
    def agrees(self) -> bool:
        """Within three times the uncertainty, or a thousandth."""
        return abs(self.surrogate - self.difference) <= 3 * self.uncertainty + 1e-3 * abs(self.difference)


@dataclass(frozen=True)
class Verification:
    """What ``verify`` found.

    Attributes:
        value: of the unrolled loss.
        real_value: ``g_loss`` after K real steps of the real optimizer.
        tolerance: how far apart rounding may take the two.
        slopes: the derivative along two directions.
        problems: what is wrong, in sentences; empty when all agrees.
        cuts: tensors that a loss detached, by itself; the derivative does not pass there, though differences do.
    """

    value: float
    real_value: float
    tolerance: float
    slopes: list[Slope] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    cuts: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether value and derivative agree."""
        return not self.problems

    def __str__(self) -> str:
        """A short report."""
        lines = [
            f"unroll_wrap.verify: {'passed' if self.passed else 'FAILED'}",
            f"  value       {self.value:.9g}, after real steps {self.real_value:.9g} "
            f"(apart {abs(self.value - self.real_value):.1e}, allowed {self.tolerance:.1e})",
        ]
        lines += [
            f"  derivative  {s.surrogate:.6g}, by differences {s.difference:.6g} ± {s.uncertainty:.1e}"
            for s in self.slopes
        ]
        return "\n".join(lines + [f"  problem: {p}" for p in self.problems] + [f"  cut: {c}" for c in self.cuts])


def verify(
    unrolled: UnrolledGeneratorLoss, *batch: Any, wrt: Sequence[Tensor] | Tensor | None = None, **options: Any
) -> Verification:
    """Compare a call with K real optimizer steps, and its gradient with differences of them along two directions.

    Takes about twenty times K + 1 evaluations of the losses. The discriminator, its optimizer and the random generators
    are as before afterwards.

    Args:
        unrolled: the loss.
        *batch: as for a call.
        wrt: what to differentiate with respect to. None takes the tensors that require grad in the batch, or among the
            variables that the given losses capture.
        **options: as for a call.

    Returns:
        What was found; ``print`` it.

    Raises:
        ValueError: nothing to differentiate with respect to was found.
    """
    call = _Call(unrolled, batch, options)
    inputs = differentiable_inputs(wrt, (call.d_loss, call.g_loss), batch, call.kwargs, call.inner)
    random = RandomState([*inputs, *call.owned])
    with random.replayed(), warnings.catch_warnings(record=True) as caught, _Cuts() as cuts:
        warnings.simplefilter("always")
        loss = call.surrogate()
    grads = torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True)
    gradient = [torch.zeros_like(t) if g is None else g for t, g in zip(inputs, grads, strict=True)]

    def real() -> float:
        with random.replayed():
            return call.real()

    problems = [str(w.message) for w in caught]
    value, expected = loss.item(), real()
    precision = max(torch.finfo(t.dtype).eps for t in call.owned)
    tolerance = 100 * precision * max(1.0, abs(expected)) * max(1, call.steps)
    if real() != expected:
        problems.append(
            "Two evaluations from the same state differ: a loss changes something that it depends on. Guard that with "
            "unroll_wrap.is_unrolling()."
        )
    elif not abs(value - expected) <= tolerance:
        problems.append("The value is not that of real steps. Please report this, with optimizer and discriminator.")
    slopes = [_slope(real, inputs, gradient, d, precision, expected) for d in _directions(gradient)]
    if not slopes:
        problems.append("The gradient is zero: nothing can be said of it.")
    if not all(s.agrees for s in slopes):
        problems.append(
            "The derivative is not that of real steps"
            + (": a loss cuts the graph where its value depends on fake or on D (below)." if cuts.found else ".")
        )
    return Verification(value, expected, tolerance, slopes, problems, cuts.found)


def differentiable_inputs(
    wrt: Sequence[Tensor] | Tensor | None, losses: Sequence[Callable[..., Tensor]], *arguments: Any
) -> list[Tensor]:
    """``wrt``, or the tensors that require grad among the arguments and what the losses capture.

    Raises:
        ValueError: there are none.
    """
    if wrt is not None:
        return [wrt] if isinstance(wrt, Tensor) else list(wrt)
    captured = [cell.cell_contents for loss in losses for cell in getattr(loss, "__closure__", None) or ()]
    found = tensors_in(*arguments, [t for t in captured if isinstance(t, Tensor)])
    inputs = list({id(t): t for t in found if t.requires_grad}.values())
    if not inputs:
        raise ValueError(
            "No tensor requires grad, neither in the batch nor captured by the losses. Pass fake with its graph, or "
            "wrt=list(G.parameters())."
        )
    return inputs


class _Call:
    """A call of the unrolled loss, and the same with real steps."""

    def __init__(self, unrolled: UnrolledGeneratorLoss, batch: tuple[Any, ...], options: dict[str, Any]) -> None:
        self.unrolled = unrolled
        self.batch = batch
        self.d_loss = options.pop("d_loss", None) or unrolled.d_loss
        self.g_loss = options.pop("g_loss", None) or unrolled.g_loss
        self.steps, batches = unrolled.plan(batch, options.pop("steps", None), options.pop("resample", None))
        self.kwargs = options
        # Drawn once: a loader gives other batches the next time.
        self.inner = [batches(k) for k in range(self.steps)]
        self.modules, self.optimizers, self.owned = unrolled.parts()

    def surrogate(self) -> Tensor:
        return self.unrolled(
            *self.batch,
            d_loss=self.d_loss,
            g_loss=self.g_loss,
            steps=self.steps,
            resample=self.inner or None,
            **self.kwargs,
        )

    def real(self) -> float:
        """``g_loss`` after K steps of the optimizers themselves, on D itself."""
        with _put_back(self.modules, self.owned), guards.unrolling():
            replicas = [_replica(o) for o in self.optimizers]
            values = []
            for k in range(self.steps):
                self._step(replicas, self.inner[k])
                if self.unrolled.average or k == self.steps - 1:
                    values.append(self._value())
            return sum(values) / len(values) if values else self._value()

    def _step(self, optimizers: Sequence[torch.optim.Optimizer], batch: tuple[Any, ...]) -> None:
        with torch.enable_grad():
            loss = self.d_loss(self.unrolled.discriminator, *batch, **self.kwargs)
            grads = list(torch.autograd.grad(loss, self.owned, allow_unused=True))
        present = [i for i, g in enumerate(grads) if g is not None]
        if self.unrolled.grad_transform:
            for i, g in zip(present, self.unrolled.grad_transform([grads[i] for i in present]), strict=True):
                grads[i] = g
        for p, g in zip(self.owned, grads, strict=True):
            p.grad = None if g is None else g.detach()
        for optimizer in optimizers:
            optimizer.step()
        if self.unrolled.param_transform:
            with torch.no_grad():
                for p in self.owned:
                    p.copy_(self.unrolled.param_transform(p))

    def _value(self) -> float:
        # Not under no_grad: a loss may take gradients inside.
        return self.g_loss(self.unrolled.discriminator, *self.batch, **self.kwargs).item()


def _replica(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    params = parameters(optimizer)
    frozen, tensors = take_apart(optimizer, params)
    return put_together(optimizer, frozen, params, [t.clone() for t in tensors])


@contextmanager
def _put_back(modules: Sequence[torch.nn.Module], owned: Sequence[Tensor]) -> Iterator[None]:
    """Real steps on the live parameters, undone: values, buffers, ``.grad``, flags."""
    values = [(p, p.detach().clone(), p.grad, p.requires_grad) for p in owned]
    swap = Swap(modules, [])
    buffers = [(b, b.detach().clone()) for b in swap.originals()]
    with swap:
        try:
            for p in owned:
                p.requires_grad_()
            yield
        finally:
            with torch.no_grad():
                for p, value, grad, flag in values:
                    p.copy_(value)
                    p.grad = grad
                    p.requires_grad_(flag)
                for b, value in buffers:
                    b.copy_(value)


def _directions(gradient: list[Tensor]) -> list[list[Tensor]]:
    """The gradient's own direction, and that of a random half of it: both have slopes well above the rounding."""
    half = [torch.rand(g.shape, generator=torch.Generator().manual_seed(0)).to(g.device) < 0.5 for g in gradient]
    candidates = [gradient, [g * h for g, h in zip(gradient, half, strict=True)]]
    lengths = [_length(d) for d in candidates]
    return [[t / n for t in d] for d, n in zip(candidates, lengths, strict=True) if n > 0]


def _slope(
    real: Callable[[], float],
    inputs: list[Tensor],
    gradient: list[Tensor],
    direction: list[Tensor],
    precision: float,
    value: float,
) -> Slope:
    surrogate = sum((g * d).sum().item() for g, d in zip(gradient, direction, strict=True))
    size = max(_length([t.detach() for t in inputs]), 1.0)
    estimates = []
    for exponent in (1 / 4, 1 / 3, 2 / 5):
        h = size * precision**exponent
        near = (_at(real, inputs, direction, h) - _at(real, inputs, direction, -h)) / (2 * h)
        far = (_at(real, inputs, direction, 2 * h) - _at(real, inputs, direction, -2 * h)) / (4 * h)
        rounding = precision * max(abs(value), 1.0) / h
        estimates.append(((4 * near - far) / 3, abs(near - far) / 3 + rounding))
    best, uncertainty = min(estimates, key=lambda pair: pair[1])
    return Slope(surrogate, best, uncertainty)


def _at(real: Callable[[], float], inputs: list[Tensor], direction: list[Tensor], h: float) -> float:
    before = [t.detach().clone() for t in inputs]
    try:
        for t, d in zip(inputs, direction, strict=True):
            t.data.add_(d, alpha=h)
        return real()
    finally:
        for t, b in zip(inputs, before, strict=True):
            t.data.copy_(b)


def _length(tensors: Sequence[Tensor]) -> float:
    return float(sum(t.double().square().sum() for t in tensors)) ** 0.5


class _Cuts(TorchFunctionMode):
    """Notes where a loss detaches a tensor that depends on θ or on fake."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if guards.is_unrolling() and args and isinstance(args[0], Tensor) and args[0].grad_fn is not None:
            name = {Tensor.detach: "detach()", Tensor.data.__get__: ".data"}.get(func)  # type: ignore[attr-defined]
            if name is not None:
                note = f"{name} of a tensor of shape {tuple(args[0].shape)}, made by {args[0].grad_fn.name()}"
                if note not in self.found:
                    self.found.append(note)
        return func(*args, **(kwargs or {}))
