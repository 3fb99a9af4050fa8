"""What holds for the whole of a call, beside the tensors in D: found out once, from what the user gave."""

import logging
import sys
from collections.abc import Sequence
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.nn.utils import parametrize

from ..live.settings import Setting, eager, math_attention, no_cudnn, no_parametrization_cache, together
from ..live.undo import Undo
from ..operators import norms_watched
from .checkpoints import rerun_in_place
from .hooks import hooks_noted
from .swap import Swap

logger = logging.getLogger("unroll_wrap")
_noticed: WeakSet[Any] = WeakSet()
_watched = together(hooks_noted, norms_watched)


def prepare(
    swap: Swap, losses: Sequence[Any], second_order: bool, compiled: bool, undo: Undo, noted: bool = True
) -> list[Setting]:
    """Let D run so that it can be differentiated as often as needed, and remember what it looks like.

    Args:
        swap: what is going to be put into D.
        losses: the user's.
        second_order: whether gradients of D's are differentiated, which fused attention and cuDNN's RNNs do not stand.
        compiled: whether what torch.compile made of D may run, where it shows. It has no second derivative, in some
            versions silently.
        undo: ends it.
        noted: whether hooks of a loss and its derivatives of norms are watched; without an inner step they need not be.

    Returns:
        The settings that each loss has to begin with.
    """
    settings: list[Setting] = []
    if second_order:
        settings.append(math_attention)
        if any(isinstance(m, nn.RNNBase) for m in swap.modules):
            settings.append(no_cudnn)
    if "torch._dynamo" in sys.modules and not (compiled and any_compiled([*swap.modules, *losses])):
        _notice([*swap.modules, *losses])
        settings.append(eager)
    if parametrize._cache_enabled:
        settings.append(no_parametrization_cache)
    for setting in (_watched, *settings) if noted else settings:
        setting.hold(undo)
    for wrapper in filter(_in_the_way, swap.modules):
        _unwrap(wrapper, undo)
    rerun_in_place(swap, settings, undo)
    swap.enter(undo)
    return settings


def refuse_inference_mode() -> None:
    """Nothing can be differentiated there, not even within enable_grad.

    Raises:
        RuntimeError: it is on.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "An unroll differentiates d_loss, even for the value alone, and torch.inference_mode() forbids that. Leave "
            "that context, or use torch.no_grad(), which gives the value without graph."
        )


def _in_the_way(module: nn.Module) -> bool:
    """A reducer would wait for a backward pass or take ours for the user's; threads know nothing of an unroll."""
    reduces = isinstance(module, nn.parallel.DistributedDataParallel)
    return reduces or (isinstance(module, nn.DataParallel) and len(module.device_ids) > 1)


def _unwrap(wrapper: Any, undo: Undo) -> None:
    """Let passes go to the module inside."""
    own = vars(wrapper)
    before = own.get("forward")

    def put_back() -> None:
        own.pop("forward", None)
        if before is not None:
            own["forward"] = before

    undo.later(put_back)
    own["forward"] = lambda *args, **kwargs: wrapper.module(*args, **kwargs)


def _notice(objects: Sequence[Any]) -> None:
    for thing in filter(_is_compiled, objects):
        if (known := getattr(thing, "__func__", thing)) not in _noticed:
            _noticed.add(known)
            logger.info(
                "%s is compiled. An unroll runs it eagerly, because compiled code has no second derivative; nothing is "
                "compiled again.",
                type(thing).__name__,
            )


def any_compiled(objects: Sequence[Any]) -> bool:
    """Whether torch.compile made any of these modules and losses what it is."""
    return "torch._dynamo" in sys.modules and any(map(_is_compiled, objects))


def _is_compiled(thing: Any) -> bool:
    if not isinstance(thing, nn.Module):
        return hasattr(thing, "_torchdynamo_orig_callable")
    own = vars(thing)
    return (
        isinstance(thing, sys.modules["torch._dynamo"].OptimizedModule)
        or own.get("_compiled_call_impl") is not None
        or ("forward" in own and hasattr(own["forward"], "_torchdynamo_orig_callable"))
    )
