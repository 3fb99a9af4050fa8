"""Let a step under trace decide by tensors, and put its operations into forms that a trace can record.

A trace cannot record a decision (``if norm > 1``), a number that is read out of a tensor to be an argument of an
operator (``alpha=``), an operator on a list of tensors, or a tensor that takes over the memory of another
(``p.data = other``).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, get_innermost_proxy_mode
from torch.overrides import TorchFunctionMode

_set_data = Tensor.data.__set__  # pyright: ignore[reportAttributeAccessIssue]


class Asked(TorchFunctionMode):
    """A mode in which a step under trace may ask a tensor for its truth value."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []  # The tensors that were asked.
        self.values: list[bool] = []  # Their truth values.
        self.rewritten = False  # Whether an operator was put into another form, which is equal up to rounding.

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func is Tensor.__bool__:
            return self._answer(args[0])
        if func in (torch.allclose, Tensor.allclose):
            return self._answer(torch.isclose(*args, **kwargs).all())
        if func in (torch.equal, Tensor.equal):
            one, other = args
            return one.shape == other.shape and self._answer((one == other).all())
        if func == _set_data:
            return _share(*args)
        if name.startswith("_fused_") and name.endswith("_"):
            raise RuntimeError(f"it uses torch.{name}, one kernel for all that a step does. Pass fused=False.")
        if name.startswith("_foreach_"):
            self.rewritten = True
            return _one_by_one(name.removeprefix("_foreach_"), args, kwargs)
        scale = kwargs.get("alpha")
        if isinstance(scale, Tensor):
            self.rewritten = True
            # Torch reads the number out; a product keeps it in the graph.
            return func(args[0], args[1] * scale, **{k: v for k, v in kwargs.items() if k != "alpha"})
        return func(*args, **kwargs)

    def _answer(self, question: Tensor) -> bool:
        with disable_proxy_modes_tracing():
            answer = bool(question)
        self.tensors.append(question)
        self.values.append(answer)
        return answer


def rename(tensor: Tensor, source: Tensor) -> None:
    """Let ``tensor`` stand for the same node as ``source`` in the graph that is being recorded."""
    mode = get_innermost_proxy_mode()
    if mode is not None and source in mode.tracer.tensor_tracker:
        mode.tracer.tensor_tracker[tensor] = mode.tracer.tensor_tracker[source]


def is_recorded(tensor: Tensor) -> bool:
    """Return whether the graph that is being recorded knows the tensor."""
    mode = get_innermost_proxy_mode()
    return mode is not None and tensor in mode.tracer.tensor_tracker


def _share(tensor: Tensor, source: Tensor) -> None:
    _set_data(tensor, source)
    rename(tensor, source)


def _one_by_one(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Apply an operator on lists tensor by tensor."""
    first = args[0] if args else kwargs.pop("self", None)
    if not isinstance(first, (list, tuple)):
        # torch._foreach_pow(number, tensors)
        return [getattr(torch, name)(first, t) for t in args[1]]
    n = len(first)
    rest = [_parts(a, n) for a in args[1:]]
    named = {k: _parts(v, n) for k, v in kwargs.items()}
    single = _SPECIAL.get(name) or getattr(Tensor, name)
    out = [single(t, *(a[i] for a in rest), **{k: v[i] for k, v in named.items()}) for i, t in enumerate(first)]
    return None if name.endswith("_") else out


def _parts(argument: Any, n: int) -> Sequence[Any]:
    """Return one argument for each tensor of a list."""
    return argument if isinstance(argument, (list, tuple)) and len(argument) == n else [argument] * n


def _scaled(name: str) -> Callable[..., Tensor]:
    def single(tensor: Tensor, one: Tensor, other: Tensor, value: Any = 1, **named: Any) -> Tensor:
        return getattr(tensor, name)(one, other, value=named.get("scalars", value))

    return single


def _norm(tensor: Tensor, ord: Any = 2, dtype: torch.dtype | None = None) -> Tensor:  # noqa: A002
    return torch.linalg.vector_norm(tensor, ord, dtype=dtype)


_SPECIAL: dict[str, Callable[..., Any]] = {
    **{name: _scaled(name) for name in ("addcmul", "addcmul_", "addcdiv", "addcdiv_")},
    "norm": _norm,
    # torch.maximum takes no number, unlike its form for lists.
    "maximum": lambda tensor, other: tensor.clamp_min(other),
    "maximum_": lambda tensor, other: tensor.clamp_min_(other),
    "minimum": lambda tensor, other: tensor.clamp_max(other),
    "minimum_": lambda tensor, other: tensor.clamp_max_(other),
}
