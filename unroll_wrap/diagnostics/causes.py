"""Find out why a call and real steps disagree, and explain it in the user's terms."""

import copy
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from ..backward import FiniteDifference, Truncate
from ..evaluation.autocast import autocast_dtypes
from ..evaluation.graph import now
from ..optimizers.fresh import note_on_fresh
from ..proof.training import modules_of
from ..sequence import UnrolledSequence
from ..torch_private import pytree
from .cuts import where
from .directional_derivative import Slope, along
from .examined import Examined

_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)

VALUE = "The value is not that of real steps. Please report this, with optimizer and discriminator."


def changed(first: list[tuple[str, float]], again: list[tuple[str, float]], tolerance: float) -> str | None:
    """Return a message about the first loss that gives another value from the same state, or None."""
    for (name, one), (_, other) in zip(first, again, strict=True):
        if not abs(one - other) <= tolerance:
            return (
                f"{name} is {one:.9g} and, once more from the same state, {other:.9g}: it changes something that it "
                "depends on, or draws from a generator of its own. Guard the change with "
                "unroll_wrap.is_unrolling(), and draw with torch."
            )
    return None


UNMOVED = (
    "The real steps do not depend on what the derivative is taken for. Leave wrt out: the fake that was passed is then "
    "moved itself, which no change of the generator does any more."
)


def old_graph(real: Callable[..., float], inputs: Sequence[Tensor]) -> str | None:
    """Return a message if the losses use a tensor, other than ``inputs``, with a graph older than the call, or None."""
    old = _Old(inputs)
    real(around=lambda loss: old.of(loss))
    if not old.found:
        return None
    return (
        f"The losses do not use what was passed, but a tensor of an earlier graph: {old.found[0]}. Let them use their "
        "own arguments, d_loss(D, real, fake)."
    )


class _Old(TorchFunctionMode):
    """A mode that notes each use of a tensor, other than the inputs, whose graph is older than the mode."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.found: list[str] = []
        self._start = now()
        self._inputs = {id(t) for t in inputs}
        self._loss = ""

    def of(self, loss: str) -> "_Old":
        self._loss = loss
        return self

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for t in pytree.tree_leaves((args, kwargs)):
            if isinstance(t, Tensor) and t.grad_fn is not None and id(t) not in self._inputs:
                if t.grad_fn._sequence_nr() < self._start:
                    self.found.append(where(func, (t,), self._loss))
        return func(*args, **(kwargs or {}))


def cause_of(
    examined: Examined, real: Callable[..., float], ways: Sequence[Sequence[Tensor]], slopes: Sequence[Slope]
) -> str:
    """Return the reason why a derivative differs from that of real steps although the value agrees.

    ``slopes`` are the derivatives along the directions ``ways``. ``real`` computes the value of real steps; its
    ``around`` maps the name of a loss to a context for it.
    """
    unrolled = examined.unrolled
    if rewritten := _rewritten(modules_of(unrolled), real):
        return (
            f"{rewritten} is rewritten through .data while one loss runs: a second pass through D overwrites what the "
            "first saved for its gradient, and what training goes by is no derivative. Call D once, on "
            "torch.cat([real, fake]), or use torch.nn.utils.parametrizations.spectral_norm."
        )
    fresh = note_on_fresh(unrolled.parts()[1])
    if not all(s.conclusive for s in slopes):
        dtypes = {t.dtype for t in (*examined.owned, *examined.inputs.tensors)}
        remedy = "Verify in float64: D.double() and G.double(), before their optimizers have state."
        if autocast_dtypes({"cpu", *(t.device.type for t in examined.owned)}):
            remedy = "Call verify outside of torch.autocast."
        elif dtypes == {torch.float64}:
            remedy = ""
        return " ".join(filter(None, ["The differences are too coarse to say anything.", fresh, remedy]))
    if fresh:
        # What differences miss there can look like any other cause, and is gone after one step.
        return f"The derivative is not that of real steps. {fresh} Then verify again, which names the cause."
    if not isinstance(unrolled, UnrolledSequence) and not isinstance(unrolled.backward, FiniteDifference):
        one, backward = copy.copy(unrolled), unrolled.backward
        quotient = FiniteDifference(central=True)
        one.backward = Truncate(backward.steps, quotient) if isinstance(backward, Truncate) else quotient
        with suppress(RuntimeError):
            _, _, gradient = examined.quietly(one)
            if all(
                replace(s, surrogate=along(gradient, way), allowed=5e-3).agrees
                for s, way in zip(slopes, ways, strict=True)
            ):
                return (
                    "The derivative is not that of real steps, and with backward=FiniteDifference() it is: an operator "
                    "in d_loss has a wrong second derivative, or none. Replace it, or pass that backward."
                )
    if hooked := sorted({type(m).__name__ for m in modules_of(unrolled) if m._backward_hooks or m._backward_pre_hooks}):
        return (
            f"The derivative is not that of real steps. {', '.join(hooked)} in {unrolled.names.short} has backward "
            "hooks: what they change of a gradient is no derivative, and no difference shows it. Verify without them."
        )
    return (
        "The derivative is not that of real steps. A torch.autograd.Function in a loss may have a wrong backward; if "
        "there is none, please report this, with optimizer and discriminator."
    )


def _rewritten(modules: Sequence[nn.Module], real: Callable[..., float]) -> str | None:
    """Return the name of a tensor that a loss saves for its gradient and overwrites unseen by autograd, or None."""
    # The whole of D comes first in the list. It is entered last, so that its names for the modules are kept.
    name_of = {id(m): name for root in reversed(modules) for name, m in root.named_modules()}
    found: list[str] = []
    real(around=lambda _: _Saved(modules, name_of, found))
    return found[0] if found else None


class _Saved(saved_tensors_hooks):
    def __init__(self, modules: Sequence[nn.Module], name_of: dict[int, str], found: list[str]) -> None:
        super().__init__(self._note, lambda tensor: tensor)
        # While a norm updates its running statistics, its gradient does not use them.
        self._modules = [m for m in modules if not isinstance(m, _NORMS)]
        self._name_of, self._found = name_of, found
        self._saved: list[tuple[str, Tensor, Tensor]] = []

    def _note(self, tensor: Tensor) -> Tensor:
        for module in self._modules:
            for name, own in (*module._parameters.items(), *module._buffers.items()):
                if own is not None and own.data_ptr() == tensor.data_ptr() and own.numel():
                    owner = f"{name} of {type(module).__name__} ({self._name_of[id(module)] or 'D itself'})"
                    self._saved.append((owner, own, own.detach().clone()))
        return tensor

    def __exit__(self, *of: object) -> None:
        super().__exit__(*of)
        self._found += [owner for owner, now, before in self._saved if not torch.equal(now.detach(), before)]
