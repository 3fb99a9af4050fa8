"""Lend a loss the user's own tensors, and put back what it has changed of them."""

from collections.abc import Iterable

from torch import Tensor

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


def changes_batch(tensor: Tensor, name: str) -> ValueError:
    """Return the error for a loss that changes a tensor of the batch in place."""
    return ValueError(
        f"{name} changes a tensor of the batch in place, of shape {tuple(tensor.shape)}: it would do so in every inner "
        "step, and to your own tensor. Let it make a new one (real = real + noise), or begin with a copy "
        "(fake = fake.clone())."
    )
