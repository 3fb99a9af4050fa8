"""Take K real steps of the user's own discriminator by their own optimizer, and put everything back."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import guards
from ..call.batch import mapped, tensors_in
from ..evaluation.checkpoints import in_place
from ..evaluation.loss_errors import explained
from ..evaluation.swap import Swap
from ..live.snapshot import Snapshot
from ..optimizers.transforms import takes
from .training import clear, modules_of, moved_by, steppers_of, zeros_in

Shift = Callable[[], AbstractContextManager[object]]
Around = Callable[[str], AbstractContextManager[object]]


@dataclass
class RealSteps:
    """A computation of ``g_loss`` after K steps of the live optimizers on the live parameters.

    No tensor, optimizer or module is copied, so that hooks, wrappers and attributes do what they do in training.
    """

    unrolled: Any
    d_loss: Callable[..., Tensor]
    g_loss: Callable[..., Tensor]
    batch: tuple[Any, ...]
    inner: Sequence[tuple[Any, ...]]  # The batch of each inner step.
    kwargs: dict[str, Any]
    constant: int = 0  # How many of the first steps count as constant in a derivative, by the user's choice.
    # The name and the value of each evaluation of a loss in the last run.
    values: list[tuple[str, float]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.modules = modules_of(self.unrolled)
        # A tensor of the player's in a batch is what the player is at each step.
        own = {id(t) for m in self.modules for t in (*m.parameters(), *m.buffers())}
        given = [
            t for t in tensors_in(self.batch, self.inner, self.kwargs) if t.is_floating_point() and t.requires_grad
        ]
        # Noted now, because a loss may switch a flag.
        self._with_graph = {id(t) for t in given} - own

    def run(self, shifted: Shift = nullcontext, around: Around = nullcontext) -> float:
        """Return ``g_loss`` after the last step, or the mean or the point on a line that the loss asks for.

        Args:
            shifted: makes a context that moves the tensors to differentiate with respect to.
            around: maps the name of a loss to a context for one evaluation.
        """
        self.values, total, own = [], 0.0, self.unrolled.names.player_loss
        weights = self.weights(len(self.inner))
        # What a checkpoint runs again has to run in the context of its loss too.
        again = nullcontext() if around is nullcontext else in_place(Swap(self.modules, []))
        steppers = steppers_of(self.unrolled)
        moved = moved_by(steppers, self.unrolled)
        roots = [*self.modules, *steppers, self.d_loss, self.g_loss, self.batch, self.inner, self.kwargs]
        with Snapshot(roots), guards.unrolling(), again:
            zeros = zeros_in(moved.values())
            for p in moved.values():
                p.requires_grad_(True)
            if 0 in weights:
                total += weights[0] * self._g(shifted, around)
            for k, batch in enumerate(self.inner):
                clear(steppers, list(moved.values()), zeros)
                with nullcontext() if k < self.constant else shifted():
                    loss = self._evaluate(f"{own} at inner step {k}", self.d_loss, batch, around(own))
                    loss.backward(inputs=[p for p in moved.values() if p.requires_grad])
                    self._step(steppers, moved)
                if k + 1 in weights:
                    total += weights[k + 1] * self._g(shifted, around)
            return total

    def weights(self, steps: int) -> dict[int, float]:
        """Return the weight of ``g_loss`` after each number of steps, as the user's option asks for it."""
        factor = getattr(self.unrolled.average, "factor", None)
        if factor is not None:
            weights = {0: 1 - factor, steps: factor} if steps else {0: 1.0}
            return {k: w for k, w in weights.items() if w or k == steps}
        if self.unrolled.average and steps:
            return {k: 1 / steps for k in range(1, steps + 1)}
        return {steps: 1.0}

    def _g(self, shifted: Any, around: Any) -> float:
        # For the mean, g_loss runs between the steps. What it leaves in D must not reach the next step.
        name = self.unrolled.names.loss
        aside = Snapshot(self.modules) if self.unrolled.average else nullcontext()
        with aside, shifted():
            return self._evaluate(name, self.g_loss, self.batch, around(name)).item()

    def _evaluate(self, name: str, loss: Any, batch: tuple[Any, ...], around: Any) -> Tensor:
        batch, kwargs = _without_the_generator(batch, self.kwargs, self._with_graph)
        # Gradients are on even for g_loss, because a loss may differentiate inside.
        given = (self.unrolled.player, *batch)
        # Autocast keeps copies of weights, and does not see that a step has changed them.
        torch.clear_autocast_cache()
        with explained(name, loss, given, kwargs, self.unrolled.names.short), torch.enable_grad(), around:
            value = loss(*given, **kwargs)
        self.values.append((name, value.item()))
        return value

    def _step(self, steppers: list[Any], moved: dict[str, Tensor]) -> None:
        """Do what a loop does after ``backward()``: take the optimizers' own steps, with the transforms around them."""
        of_gradients, of_parameter = self.unrolled.grad_transform, self.unrolled.param_transform
        if of_gradients:
            found = {name: p for name, p in moved.items() if p.grad is not None}
            named: dict[str, Any] = {"names": list(found)} if takes(of_gradients, "names") else {}
            new = of_gradients([p.grad.clone() for p in found.values() if p.grad is not None], **named)
            for p, g in zip(found.values(), new, strict=True):
                p.grad = g.detach()
        for stepper in steppers:
            stepper.step()
        if of_parameter:
            with torch.no_grad():
                for name, p in moved.items():
                    p.copy_(of_parameter(p.clone(), **({"name": name} if takes(of_parameter, "name") else {})))


def _without_the_generator(
    batch: tuple[Any, ...], kwargs: dict[str, Any], with_graph: set[int]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of one evaluation, where what requires grad does so still, but leads to no generator.

    Args:
        batch: the positional arguments.
        kwargs: the keyword arguments.
        with_graph: the ids of the tensors that may lead to a generator.
    """
    known: dict[int, Tensor] = {}

    def alone(tensor: Tensor) -> Tensor:
        if id(tensor) not in with_graph:
            return tensor
        if id(tensor) not in known:
            # clone() lets D begin in place.
            known[id(tensor)] = tensor.detach().requires_grad_().clone()
            vars(known[id(tensor)]).update(vars(tensor))
        return known[id(tensor)]

    return mapped(alone, batch), mapped(alone, kwargs)
