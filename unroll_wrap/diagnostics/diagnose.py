"""Measure what unrolling does in the user's own loop, at this moment of training."""

import copy
import random
import sys
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..call.batch import mapped, tensors_in
from ..live.random_state import EveryState
from ..loss import UnrolledLoss
from .comparison import Comparison
from .diagnosis import SPREAD, Diagnosis
from .examined import Examined, Wrt, check_examined
from .peak_memory import PeakMemory


def diagnose(unrolled: UnrolledLoss, /, *batch: Any, wrt: Wrt = None, repeats: int = 3, **options: Any) -> Diagnosis:
    """Measure both terms of the unrolled gradient (Eq. 12), and compare it with the gradient at K = 0.

    The call is made from the same state with unrolling (once for memory, once for time), with its first term alone,
    and with K = 0, where the generator's loss draws the same random numbers as after the K steps. To show how the
    results scatter, the last three are repeated with other random numbers and with batches of the same size, drawn
    with replacement from the given rows; a batch that a loss captures stays the same.

    Args:
        unrolled: the loss, with steps >= 1.
        *batch: the positional arguments of a call, such as real and fake.
        wrt: as in ``verify``, except that None takes only tensors with a graph, such as fake, if there are any.
        repeats: the number of further batches; 0 for none.
        **options: the keyword arguments of a call.

    Returns:
        The measurements, which you can ``print``, ``plot``, or log by their ``scalars``.

    Raises:
        ValueError: steps is 0, nothing requires grad, or the losses use another fake than the one passed.
        RuntimeError: ``torch.no_grad()`` is on.

    Examples:
        >>> G, D = torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)
        >>> opt_D = torch.optim.SGD(D.parameters(), lr=0.1)
        >>> unrolled = unroll_wrap.UnrolledGeneratorLoss(D, opt_D, *unroll_wrap.non_saturating, steps=3)
        >>> found = unroll_wrap.diagnose(unrolled, torch.randn(8, 2), G(torch.randn(8, 2)))
        >>> len(found.d_losses), 0 < found.share < 1
        (3, True)
    """
    check_examined(unrolled, "diagnose", batch, options)
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 0:
        raise ValueError(f"repeats is {repeats!r}. Pass a whole number >= 0: how many more batches to look at.")
    examined = Examined(unrolled, batch, wrt, options).required()
    if examined.steps == 0:
        raise ValueError("steps is 0: nothing is unrolled. Pass diagnose(..., steps=5), say.")
    memory = PeakMemory()
    *_, gradient = examined.quietly(within=memory)
    if old := Comparison(examined).old_fake(gradient):
        raise ValueError(old)
    found = replace(_measured(examined), peak_bytes=memory.peak)
    if not repeats:
        return found
    others = [_drawn_again(examined, seed) for seed in range(repeats)]
    spread = {name: _scatter([getattr(one, name) for one in (found, *others)]) for name in SPREAD}
    return replace(found, growths=[growth for one in (found, *others) for growth in one.growths], spread=spread)


def _scatter(values: list[float]) -> float:
    return torch.tensor(values, dtype=torch.float64).std().item()


def _measured(examined: Examined) -> Diagnosis:
    """Return the measurements of one batch, except for its memory."""
    first_alone = copy.copy(examined.unrolled)
    first_alone.stop_gradient = True

    def gradient(*given: Any) -> tuple[Tensor, list[Tensor], Tensor]:
        value, d_losses, found = examined.quietly(*given)
        return value, d_losses, torch.cat([g.reshape(-1).cpu().double() for g in examined.inputs.made(found)])

    began = time.perf_counter()
    value, d_losses, total = gradient()
    seconds = time.perf_counter() - began
    # Dropout and augmentation draw what they do after K steps, or their noise would look like an effect of the steps.
    *_, plain = gradient(first_alone, 0, examined.before_loss().replayed() if examined.draws else None)
    try:
        *_, first = gradient(first_alone)
    except ValueError:
        # The first term is 0 if only the returned loss does not depend on whoever minimises it. Otherwise the whole
        # call above has failed already.
        first = torch.zeros_like(plain)
    a, b = float(first.norm()), float((total - first).norm())
    lengths = float(total.norm()) * float(plain.norm())
    along = [v.item() for v in d_losses]
    return Diagnosis(
        steps=examined.steps,
        d_losses=along,
        g_loss=value.item(),
        first_term=a,
        second_term=b,
        share=b / (a + b) if a + b else 0.0,
        cosine=float(total @ plain) / lengths if lengths else 0.0,
        ratio=float(total.norm() / plain.norm()) if plain.norm() else float("inf") if total.norm() else 1.0,
        seconds=seconds,
        peak_bytes=0,
        # The losses of several players pull in opposite directions, so none of them has to fall.
        growths=[float("nan") if len(along) > examined.steps else along[-1] - along[0]],
        names=examined.unrolled.names,
    )


def _drawn_again(examined: Examined, seed: int) -> Diagnosis:
    """Measure a batch whose rows are drawn with replacement from the call's own, with other random numbers."""
    batch, wrt, options = examined.given
    rows = [t.shape[0] for t in tensors_in(batch) if t.dim()]
    new: dict[int, Tensor] = {}

    def drawn(tensor: Tensor) -> Tensor:
        if tensor.dim() and tensor.shape[0] == rows[0] and id(tensor) not in new:
            new[id(tensor)] = tensor[chosen.to(tensor.device)]
        return new.get(id(tensor), tensor)

    with EveryState(tensors_in(batch), ()).replayed():
        torch.manual_seed(seed)
        random.seed(seed)
        if numpy := sys.modules.get("numpy"):
            numpy.random.seed(seed)
        if rows:
            chosen = torch.randint(rows[0], (rows[0],))
            batch, options, wrt = mapped(drawn, batch), mapped(drawn, options), wrt and mapped(drawn, wrt)
        return _measured(Examined(examined.unrolled, batch, wrt, options).required())
