"""Explain in the user's terms why a loss fails, or that it does not return a scalar."""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..call.batch import tensors_in
from ..call.sequence import PlayerLoss
from ..messages import add_note, described
from ..torch_private import is_criterion


def misplaced(name: str, owned: Iterable[Tensor], batch: Any, error: RuntimeError) -> ValueError | None:
    """Return a clearer error if the batch has another device or dtype than the discriminator, or else None."""
    # Labels may be integers of any dtype, but uint8 suggests images that were not converted.
    given = [(t.device.type, t.dtype) for t in tensors_in(batch) if t.is_floating_point() or t.dtype is torch.uint8]
    own = list(dict.fromkeys((p.device.type, p.dtype) for p in owned))
    if set(given) <= set(own):
        return None
    if told := _unusable(name, list(owned), error):
        return told
    return ValueError(
        f"{name} failed, and its batch is on {_places(given)}, in this order, while the parameters are on "
        f"{_places(own)}. Move the batch with .to(device, dtype). The loss said: {error}"
    )


@contextmanager
def explained(
    name: str, loss: Callable[..., Any], given: Sequence[Any], kwargs: Mapping[str, Any], who: str
) -> Iterator[None]:
    """Say of an error in this context which loss it is in, and whether that takes ``who`` and the call's arguments."""
    try:
        yield
    except Exception as error:
        told = None
        if isinstance(error, (TypeError, AttributeError)):
            told = _misfit(name.split()[0], loss, given, kwargs, error, who)
        batch = ", ".join(map(described, given[1:]))
        add_note(told or error, f"That was {name}, run by an unrolled loss on {batch or 'no batch'}.")
        if told:
            raise told from error
        raise


def _misfit(
    name: str,
    loss: Callable[..., Any],
    given: Sequence[Any],
    kwargs: Mapping[str, Any],
    error: TypeError | AttributeError,
    who: str,
) -> TypeError | None:
    """Return a clearer error if the loss does not take the arguments of the call, or else None."""
    if isinstance(loss, PlayerLoss):
        loss, given = loss.loss, (loss.player, *given[1:])
    try:
        inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss).bind(*given, **kwargs)
    except ValueError:  # Some builtins have no signature.
        return None
    except TypeError as cause:
        batch = ", ".join(described(x) for x in given[1:]) or "nothing"
        keywords = f"the keywords {', '.join(sorted(kwargs))}" if kwargs else "no keywords"
        second = "fake" if who == "D" else "z"
        remedy = (
            f"Pass the batch, as in unrolled(real, {second}), what else the loss takes by its name, as in "
            f"labels=labels, and a loss that takes {who} first."
        )
        if is_criterion(loss):
            remedy = (
                f"{type(loss).__name__} is of outputs and labels: pass a function that takes {who} first and calls it."
            )
        elif isinstance(given[-1], int):
            remedy = f"Was steps={given[-1]} meant? A number of steps is passed by its name."
        return TypeError(
            f"{name} does not fit this call: {cause}. It is called as {name}({who}, *batch, **kwargs), here with "
            f"{who}, {batch} and {keywords}. {remedy}"
        )
    if told := _several(given[0], error) or _listed(given, error) or _swapped(name, error):
        return told
    unknown = [k for k in kwargs if "unexpected keyword" in str(error) and f"'{k}'" in str(error)]
    if unknown:
        return TypeError(
            f"{name} passed the keyword {unknown[0]!r} on, and it was not taken: {error}. Keywords of a call go to the "
            "losses, except d_loss, g_loss, resample and steps."
        )
    return None


def one_element(name: str, value: Any) -> Tensor:
    """Return ``value``; raise TypeError if it is not a tensor, and ValueError unless it has one element."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} returned {type(value).__name__}, not a tensor. Return the scalar to minimise.")
    if value.numel() != 1:
        raise ValueError(
            f"{name} returned a tensor of shape {tuple(value.shape)}, not a scalar. Reduce it, with .mean() say."
        )
    return value


def _listed(given: Sequence[Any], error: Exception) -> TypeError | None:
    """Return an error if the batch holds a list or a network for a tensor, or None."""
    wrong = [x for x in given[1:] if isinstance(x, (list, tuple, nn.Module)) and type(x).__name__ in str(error)]
    first = wrong[0] if wrong else ()
    if isinstance(first, nn.Module):
        return TypeError(
            f"A loss got {described(first)}, for a tensor of the batch. Pass what the network returns, as in "
            f"unrolled(real, G(z)). The loss said: {error}"
        )
    if not any(isinstance(x, Tensor) for x in first):
        return None
    # A loader of images and labels yields such lists.
    names = "(real,)" if len(first) == 1 else "real, labels"
    return TypeError(
        f"A loss got {described(first)}, for a tensor of the batch. A loader of images and labels yields such lists: "
        f"take them apart, as in `for {names} in loader`, and pass unrolled(real, fake). The loss said: {error}"
    )


def _swapped(name: str, error: Exception) -> TypeError | None:
    """Return an error if a loss calls a tensor, as one does that takes real where D comes, or None."""
    if not str(error).startswith("'Tensor' object is not callable"):
        return None
    return TypeError(
        f"{name} calls a tensor as if it were D: {error}. It is called as {name}(D, *batch, **kwargs): D is its first "
        "argument."
    )


def _unusable(name: str, params: Sequence[Tensor], error: Exception) -> ValueError | None:
    """Return an error if the discriminator is on the meta device or in half precision, or None."""
    if any(p.is_meta for p in params):
        return ValueError(
            f"{name} failed, and the discriminator is on the meta device, where tensors have shapes and no numbers. "
            "Build it on a real device, or call D.to_empty(device=...) and load its weights, and make its optimizer "
            f"after that. The loss said: {error}"
        )
    half = next((p.dtype for p in params if p.dtype in (torch.float16, torch.bfloat16)), None)
    if half is not None:
        return ValueError(
            f"{name} failed, and the discriminator's parameters are in {half}, and its batch is not. Keep D and "
            f"its optimizer in float32 (D.float()), and run the losses under torch.autocast. The loss said: {error}"
        )
    return None


def _several(discriminator: Any, error: Exception) -> TypeError | None:
    """Return an error if a loss calls a list of discriminators as if it were one, or None."""
    if isinstance(discriminator, nn.Module) or "object is not callable" not in str(error):
        return None
    return TypeError(
        f"A loss calls D(x), and the discriminator is {described(discriminator)}: {error}. Pass losses of your own "
        "(d_loss=..., g_loss=...) that say which of them is asked, such as an objective's sum over D[0] and D[1]."
    )


def _places(places: Sequence[tuple[str, torch.dtype]]) -> str:
    return ", ".join(f"{device} ({dtype})" for device, dtype in places) or "nothing"


@contextmanager
def sizes_named(batch: tuple[Any, ...]) -> Iterator[None]:
    """Name the size that a loss takes, if torch complains in this context about two sizes, one of them the batch's."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        rows = {t.shape[0] for t in tensors_in(batch) if t.dim()}
        if wanted := _other_size(str(error), rows):
            raise ValueError(
                f"The batch has {min(rows)} samples, and a loss takes batches of {wanted} only: it has a tensor of "
                f"that size. Pass {wanted} samples, or let the loss make its labels after what D returns "
                f"(torch.ones_like). Torch said: {error}"
            ) from error
        raise


def _other_size(text: str, rows: set[int]) -> int | None:
    """Return the number beside the batch's own in an error about two sizes, or None for any other error."""
    if "size" not in text or len(rows) != 1:
        return None
    # In a shape such as Size([64, 1]), the first number is the size of the batch.
    leading = [int(n) for n in re.findall(r"Size\(\[(\d+)", text)]
    found = leading or [int(n) for n in re.findall(r"\((\d+)\)", text)]
    others = set(found) - rows
    return others.pop() if set(found) & rows and len(others) == 1 else None
