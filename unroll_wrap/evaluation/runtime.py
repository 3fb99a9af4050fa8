"""Prepare everything that a call needs besides D's tensors: torch's settings, compiled code, wrappers, checkpoints."""

import logging
from collections.abc import Sequence
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.autograd.forward_ad import unpack_dual

from ..call.batch import tensors_in
from ..live.settings import Setting, eager, math_attention, no_cudnn, no_parametrization_cache
from ..live.undo import Undo
from ..operators.refusals import norms_watched
from ..torch_private import forward_level, has_dynamo, is_optimized, parametrization_cache, transforms_active
from .checkpoints import rerun_in_place
from .hooks import hooks_noted, leaves_observed
from .swap import Swap

logger = logging.getLogger("unroll_wrap")
_noticed: WeakSet[Any] = WeakSet()
_WATCHED = hooks_noted, leaves_observed, norms_watched


def prepare(
    swap: Swap, losses: Sequence[Any], second_order: bool, compiled: bool, undo: Undo, noted: bool = True
) -> list[Setting]:
    """Let D run so that it can be differentiated as often as needed, and note the state to return to.

    Args:
        swap: puts tensors into D.
        losses: the user's losses.
        second_order: whether gradients of ``d_loss`` are differentiated, which fused attention and cuDNN's RNNs forbid.
        compiled: whether compiled modules and losses may run compiled. Compiled code has no second derivative, which
            some versions of torch do not report.
        undo: restores everything.
        noted: whether hooks of a loss, and its derivatives of norms, are watched, which only inner steps need.

    Returns:
        The settings that have to be in force whenever a loss runs.
    """
    settings: list[Setting] = []
    if second_order:
        settings.append(math_attention)
        if any(isinstance(m, nn.RNNBase) for m in swap.modules):
            settings.append(no_cudnn)
    if has_dynamo() and not (compiled and any_compiled([*swap.modules, *losses])):
        _notice([*swap.modules, *losses])
        settings.append(eager)
    if parametrization_cache()[0]:
        settings.append(no_parametrization_cache)
    for setting in (*_WATCHED, *settings) if noted else settings:
        setting.hold(undo)
    for wrapper in filter(_in_the_way, swap.modules):
        _unwrap(wrapper, undo)
    rerun_in_place(swap, settings, undo)
    swap.enter(undo)
    return settings


def refuse_surroundings(*given: Any) -> None:
    """Raise in inference mode, in a transform of ``torch.func``, and if forward mode asks for the derivative."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "An unroll differentiates d_loss, even for the value alone, and torch.inference_mode() forbids that. Leave "
            "that context, or use torch.no_grad(), which gives the value without graph."
        )
    if transforms_active():
        raise RuntimeError(
            "An unroll takes optimizer steps and differentiates them backwards, which cannot happen inside torch.func "
            "(grad, vmap, jvp). Call the loss outside, and use backward() or torch.autograd.grad."
        )
    if forward_level() >= 0 and any(unpack_dual(t).tangent is not None for t in tensors_in(*given)):
        raise RuntimeError(
            "A tensor of the batch has a tangent, of torch.autograd.forward_ad, and an unrolled loss is differentiated "
            "backwards alone. Pass the tensor without it, and use backward() or torch.autograd.grad."
        )


def _in_the_way(module: nn.Module) -> bool:
    """Return whether a wrapper has a reducer, which would react to our backward passes, or threads of its own."""
    reduces = isinstance(module, nn.parallel.DistributedDataParallel)
    return reduces or (isinstance(module, nn.DataParallel) and len(module.device_ids) > 1)


def _unwrap(wrapper: Any, undo: Undo) -> None:
    """Let forward passes go directly to the wrapped module."""
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
    """Return whether any of these modules and losses has been compiled by torch.compile."""
    return has_dynamo() and any(map(_is_compiled, objects))


def _is_compiled(thing: Any) -> bool:
    if not isinstance(thing, nn.Module):
        return hasattr(thing, "_torchdynamo_orig_callable")
    own = vars(thing)
    return (
        is_optimized(thing)
        or own.get("_compiled_call_impl") is not None
        or ("forward" in own and hasattr(own["forward"], "_torchdynamo_orig_callable"))
    )
