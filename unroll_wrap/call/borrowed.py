"""Lend a loss the user's own tensors, and put back what it has changed of them."""

from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor

from ..live.memory import overlapping, spans
from ..live.restore import SavedTensor
from ..torch_private import without_torch_function


class Borrowed:
    """The user's tensors that require no grad, which the losses of a call get as they are.

    Args:
        tensors: those that are known already; others are left out.
    """

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        self._saved: dict[int, SavedTensor] = {}
        for t in tensors:
            if not t.requires_grad:
                self.borrow(t)

    def borrow(self, tensor: Tensor) -> None:
        """Note a tensor as it is."""
        self._saved[id(tensor)] = SavedTensor.of(tensor, valued=False)

    def check(self, name: str) -> None:
        """Raise a ValueError if the loss of this name has given one of them a graph or a hook."""
        for saved in self._saved.values():
            t = saved.tensor
            if not t.is_leaf:
                raise changes_batch(t, name)
            if t._backward_hooks and dict(t._backward_hooks) != saved.hooks[1]:
                raise ValueError(
                    f"{name} registers a hook on a tensor of the batch, of shape {tuple(t.shape)}: in a loop it stays "
                    "there, and there is one more in every step. Register it on a copy (real = real.clone())."
                )

    def give_back(self) -> None:
        """Restore flags and ``.grad``, which a penalty may have changed (``real.requires_grad_()``)."""
        for one in self._saved.values():
            one.put_back()

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self._saved


class Given:
    """The tensors of a call's batch as they were before the losses ran.

    Args:
        tensors: the tensors.
        own: the ids of D's own tensors, which are put back anyway.
        moving: the tensors of D and of the optimizer's state that a real step may move.

    Raises:
        ValueError: one of them lies in the memory of a tensor of D or of the state, where a real step would move it.
    """

    def __init__(self, tensors: Sequence[Tensor], own: Collection[int], moving: Sequence[Tensor]) -> None:
        # A tensor that requires grad is copied for each evaluation.
        plain = [t for t in tensors if not (t.requires_grad or t.is_inference() or id(t) in own)]
        plain = [t for t in plain if t.layout is torch.strided and not (t.is_nested or t.is_quantized or t.is_meta)]
        if shapes := [tuple(t.shape) for t in overlapping(plain, spans(moving))]:
            raise ValueError(
                f"A tensor of the batch, of shape {shapes[0]}, lies in the memory of a tensor of D or of its optimizer "
                "(p.detach(), p.data, a momentum): a real step may move it, and an unroll would not. Pass the "
                "parameter itself, or a copy (p.detach().clone())."
            )
        # Of an expanded tensor, each entry once.
        whole = [t[tuple(slice(1 if step == 0 else None) for step in t.stride())] for t in plain]
        self._before = [(t, t._version, t.clone()) for t in whole]

    def check(self, name: str) -> None:
        """Raise ValueError if the loss of this name has changed one of them in place."""
        for t, version, _ in self._before:
            if t._version != version:
                raise changes_batch(t, name)

    def changed(self) -> list[Tensor]:
        """Return for each whether a loss has changed it, even where torch has not seen it (``real.data``)."""
        return [have_changed(copy, t) for t, _, copy in self._before]

    def finish(self, changed: Sequence[float]) -> None:
        """Raise ValueError if one has changed, given the values of ``changed``."""
        for (t, *_), yes in zip(self._before, changed, strict=True):
            if yes:
                raise changes_batch(t, "A loss")
        self._before = []

    def put_back(self) -> None:
        """Give those that have changed their values again; others may lie in memory that cannot be written to."""
        for t, _, copy in self._before:
            if have_changed(copy, t):
                t.data.copy_(copy)


def have_changed(before: Tensor, now: Tensor) -> Tensor:
    """Return whether values have changed, as a tensor; NaN differs from itself, and another check reports it."""
    with without_torch_function(), torch.no_grad():
        before, now = before.as_subclass(Tensor), now.as_subclass(Tensor)
        return ((before != now) & (before == before)).any()


def changes_batch(tensor: Tensor, name: str) -> ValueError:
    """Return the error for a loss that changes a tensor of the batch in place."""
    return ValueError(
        f"{name} changes a tensor of the batch in place, of shape {tuple(tensor.shape)}: it would do so in every inner "
        "step, and to your own tensor. Let it make a new one (real = real + noise), or begin with a copy "
        "(fake = fake.clone())."
    )
