"""The tensors of a batch as cut points: each evaluation of a loss gets leaves of its own.

One sweep then yields the cotangent of the parameters and the gradient of ``fake`` together, and the generator's graph
is entered once, by the gradients that the result hands over.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor


class Arguments(NamedTuple):
    """A loss's arguments, and what stands in for what.

    Attributes:
        batch: positional arguments.
        kwargs: keyword arguments.
        originals: the user's tensors that require grad.
        leaves: their stand-ins, in the same order.
        aliases: every stand-in leaf, those of tensors without grad included.
    """

    batch: tuple[Any, ...]
    kwargs: dict[str, Any]
    originals: list[Tensor]
    leaves: list[Tensor]
    aliases: list[Tensor]


def cut(batch: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """Fresh stand-ins for the floating-point tensors in ``batch`` and ``kwargs``, containers included."""
    leaf_of: dict[int, tuple[Tensor, Tensor]] = {}
    aliases: list[Tensor] = []

    def stand_in(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        if not tensor.requires_grad:
            # A penalty may call real.requires_grad_(); the flag then lands here, not on the user's batch.
            alias = tensor.detach()
            aliases.append(alias)
            return alias
        if id(tensor) not in leaf_of:
            # Of 16 bits the gradient is summed in 32: a GradScaler multiplies it by more than float16 can hold.
            full = tensor.detach().float() if tensor.itemsize == 2 else tensor.detach()
            leaf_of[id(tensor)] = tensor, full.requires_grad_()
        # A copy: D may start with an in-place operation, which a leaf would refuse.
        leaf = leaf_of[id(tensor)][1]
        return leaf.clone() if leaf.dtype is tensor.dtype else leaf.to(tensor.dtype)

    new_batch, new_kwargs = (
        tuple(mapped(stand_in, x) for x in batch),
        {k: mapped(stand_in, v) for k, v in kwargs.items()},
    )
    originals, leaves = [o for o, _ in leaf_of.values()], [leaf for _, leaf in leaf_of.values()]
    return Arguments(new_batch, new_kwargs, originals, leaves, aliases + leaves)


def tensors_in(*values: Any) -> list[Tensor]:
    """Every tensor in some arguments, containers included."""
    found: list[Tensor] = []
    for value in values:
        mapped(found.append, value)
    return found


def mapped(function: Callable[[Tensor], Any], value: Any) -> Any:
    """``value`` with ``function`` applied to its tensors, in containers too."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return type(value)((k, mapped(function, v)) for k, v in value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(function, v) for v in value))
    if isinstance(value, (list, tuple)):
        return type(value)(mapped(function, v) for v in value)
    return value
