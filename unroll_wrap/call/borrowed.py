"""Lend a loss the user's own tensors, and put back what it has changed of them."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..live.memory import address
from ..live.restore import SavedTensor


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
        for t, saved in ((one.tensor, one) for one in self._saved.values()):
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
    """The tensors of a batch as they were before the losses ran.

    Args:
        tensors: the tensors.
        own: D's own tensors, which are put back anyway.
        state: the tensors of the optimizer's state.
        copied: whether to keep copies, so that the tensors can be put back.

    Raises:
        ValueError: one of them lies in the memory of a tensor of D or of the state, where a real step would move it.
    """

    def __init__(self, tensors: Sequence[Tensor], own: Sequence[Tensor], state: Sequence[Tensor], copied: bool) -> None:
        ids = set(map(id, own))
        # A tensor that requires grad is copied for each evaluation.
        plain = [t for t in tensors if not (t.requires_grad or t.is_inference() or id(t) in ids)]
        if copied and (shapes := _in_memory_of(plain, [*own, *state])):
            raise ValueError(
                f"A tensor of the batch, of shape {shapes[0]}, lies in the memory of a tensor of D or of its optimizer "
                "(p.detach(), p.data, a momentum): a real step would move it, and an unroll would not. Pass the "
                "parameter itself, or a copy (p.detach().clone())."
            )
        self._before = [(t, t._version, t.clone() if copied else None) for t in plain]

    def put_back(self) -> None:
        """Give changed tensors their values again, if there are copies."""
        for t, copy in self._changed():
            if copy is not None:
                t.data.copy_(copy)

    def check_unchanged(self) -> None:
        """Raise ValueError if a loss has changed one of them in place."""
        if changed := self._changed():
            raise changes_batch(changed[0][0], "A loss")

    def _changed(self) -> list[tuple[Tensor, Tensor | None]]:
        return [(t, copy) for t, version, copy in self._before if t._version != version]


def _in_memory_of(tensors: Sequence[Tensor], own: Sequence[Tensor]) -> list[tuple[int, ...]]:
    """Return the shapes of those tensors that lie in the memory of some others."""

    def of(some: Sequence[Tensor]) -> list[tuple[int, Tensor]]:
        return [(address(t), t) for t in some if t.layout is torch.strided and t.numel()]

    where = {start for start, _ in of(own)}
    return [tuple(t.shape) for start, t in of(tensors) if start in where]


def differs(before: Tensor, now: Tensor) -> bool:
    """Return whether a tensor has other values than before; NaN differs from itself, and another check reports it."""
    return bool(((before != now) & (before == before)).any())


def changes_batch(tensor: Tensor, name: str) -> ValueError:
    """Return the error for a loss that changes a tensor of the batch in place."""
    return ValueError(
        f"{name} changes a tensor of the batch in place, of shape {tuple(tensor.shape)}: it would do so in every inner "
        "step, and to your own tensor. Let it make a new one (real = real + noise), or begin with a copy "
        "(fake = fake.clone())."
    )
