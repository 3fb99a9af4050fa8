"""Refuse uses of norms that torch differentiates wrongly even in real steps, so that an unroll has nothing to match.

When the second derivative of a norm, or its derivative in forward mode, is differentiated again, torch treats the
statistics as constants.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from .. import guards
from ..live.settings import Setting
from ..torch_private import TorchDispatchMode, engine_functions, forward_level, put_engine_functions

_LAYER, _BATCH = "layer_norm", "batch_norm or instance_norm with the statistics of its batch"
_OPERATORS = {
    "native_layer_norm": _LAYER,
    "native_layer_norm_backward": _LAYER,
    "native_batch_norm": _BATCH,
    "native_batch_norm_backward": _BATCH,
    "_native_batch_norm_legit": _BATCH,
    "_native_batch_norm_legit_functional": _BATCH,
    "_batch_norm_with_update": _BATCH,
    "_batch_norm_with_update_functional": _BATCH,
    "batch_norm_backward": _BATCH,
    "cudnn_batch_norm": _BATCH,
    "cudnn_batch_norm_backward": _BATCH,
    "miopen_batch_norm": _BATCH,
    "miopen_batch_norm_backward": _BATCH,
}
# The first node is that of ``batch_norm.py``.
_NODES = {
    "_BatchNormBackwardBackward": _BATCH,
    "NativeLayerNormBackwardBackward0": _LAYER,
    "NativeBatchNormBackwardBackward0": _BATCH,
    "CudnnBatchNormBackwardBackward0": _BATCH,
    "MiopenBatchNormBackwardBackward0": _BATCH,
}


def _refusal(norm: str, way: str, instead: str) -> RuntimeError:
    return RuntimeError(
        f"A loss takes {way} of {norm}, and torch's gradient of that is wrong, silently, in real steps too: it holds "
        f"the statistics constant. {instead}, or replace the norm, by nn.GroupNorm say."
    )


class _ForwardMode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        norm = _OPERATORS.get(func.overloadpacket.__name__)
        if norm and _by_statistics(func, args, kwargs):
            way = "a derivative in forward mode (torch.func.jvp, jacfwd, hessian, forward_ad)"
            raise _refusal(norm, way, "Use reverse mode (torch.autograd.grad, torch.func.grad, jacrev)")
        return func(*args, **kwargs)


def _by_statistics(func: Any, args: Any, kwargs: Any) -> bool:
    """Return whether a norm computes the statistics of its input; statistics that it is given are constants."""
    given = {a.name: value for a, value in zip(func._schema.arguments, args, strict=False)} | kwargs
    return given.get("training", given.get("train", True))


def _no_second_derivatives(outputs: Any) -> list[Any]:
    """Register hooks that raise if autograd reaches the node of a norm's first derivative; return their handles."""
    found: list[Any] = []
    seen: set[Any] = {None}
    stack: list[Any] = [t.grad_fn if isinstance(t, torch.Tensor) else t.node for t in outputs]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        norm = _NODES.get(type(node).__name__)
        if norm and getattr(node, "_saved_train", True):
            found.append(node.register_prehook(_raising(norm)))
        stack += [next_node for next_node, _ in node.next_functions]
    return found


def _raising(norm: str) -> Callable[..., None]:
    def refuse(of: Any) -> None:  # noqa: ARG001
        raise _refusal(norm, "a derivative of a derivative", "Penalise first derivatives")

    return refuse


def _watching(functions: tuple[Any, ...]) -> tuple[Any, ...]:
    enter, leave, run = functions

    def entering() -> Any:
        level = enter()
        if guards.is_unrolling():
            _modes[level] = _ForwardMode()
            _modes[level].__enter__()
        return level

    def leaving(*, level: Any = None) -> None:
        mode = _modes.pop(forward_level() if level is None else level, None)
        if mode is not None:
            mode.__exit__(None, None, None)
        leave(level=level)

    def running(outputs: Any, *args: Any, **kwargs: Any) -> Any:
        # A gradient computed without create_graph cannot be differentiated again, so it needs no watch.
        guarded = _no_second_derivatives(outputs) if guards.is_unrolling() and args[2] else []
        try:
            return run(outputs, *args, **kwargs)
        finally:
            for handle in guarded:
                handle.remove()

    return entering, leaving, running


# Forward mode has only one level at a time, in one thread, so a plain dict is enough.
_modes: dict[int, AbstractContextManager[object]] = {}
norms_watched = Setting(engine_functions, put_engine_functions, _watching)
