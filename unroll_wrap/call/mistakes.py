"""What is easily got wrong in a call, told in the user's terms before anything runs, or after a loss has failed."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from math import isfinite
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from ..guards import is_unrolling
from ..live.undo import Undo
from ..objectives import Objective, hinge, least_squares, minimax, non_saturating, relativistic, wasserstein
from .categories import LogitsExpected
from .messages import described, users_line

_OF_REAL_AND_FAKE = [o.d_loss for o in (minimax, non_saturating, hinge, wasserstein, least_squares, relativistic)]
_OF_LOGITS = [*minimax, *non_saturating, *relativistic]


def check_options(backward: Any, **transforms: Any) -> None:
    """A backward that is one, and transforms that are functions.

    Raises:
        TypeError: a class, a name, a value.
    """
    if isinstance(backward, type) or not hasattr(backward, "tape"):
        raise TypeError(f"backward is {described(backward)}. Pass an instance, such as Store() or Recompute().")
    for name, value in transforms.items():
        if value is not None and not callable(value):
            raise TypeError(f"{name} is {described(value)}. Pass a function, or None.")


def check_losses(**losses: Any) -> None:
    """Functions of D and a batch.

    Raises:
        TypeError: a value, or a class.
    """
    for name, value in losses.items():
        if not callable(value) or isinstance(value, type):
            pair = "a pair of losses, to be unpacked (*non_saturating)"
            given = pair if isinstance(value, Objective) else described(value)
            raise TypeError(f"{name} is {given}. Pass a function (D, *batch, **kwargs) -> scalar.")


def check_logits(losses: Iterable[Any], modules: Sequence[nn.Module]) -> None:
    """Of the package's objectives those that take logits, and a D that returns them; else a warning.

    After a Sigmoid everything runs, and D and G learn next to nothing.
    """
    last = next((m for m in reversed(modules) if not m._modules), None)
    if isinstance(last, (nn.Sigmoid, nn.LogSigmoid, nn.Softmax)) and any(loss in _OF_LOGITS for loss in losses):
        warnings.warn(
            f"The discriminator ends in {type(last).__name__}, and minimax, non_saturating and relativistic take "
            "logits: both players would learn next to nothing. Pass the losses of your own loop (d_loss=..., "
            "g_loss=...), or end D in logits and train it with BCEWithLogitsLoss.",
            LogitsExpected,
            stacklevel=users_line(),
        )


def check_order(d_loss: Callable[..., Tensor], batch: Sequence[Any]) -> None:
    """Real before fake: of the package's objectives the order is known, and the other way round trains the wrong way.

    Raises:
        ValueError: the first comes from a generator, and the second does not.
    """
    if len(batch) != 2 or not all(isinstance(x, Tensor) for x in batch) or d_loss not in _OF_REAL_AND_FAKE:
        return
    real, fake = batch
    if real.grad_fn is not None and not fake.requires_grad:
        raise ValueError(
            f"real has a graph, from a generator as it seems, and fake has none: shapes {tuple(real.shape)} and "
            f"{tuple(fake.shape)}. The order is unrolled(real, fake)."
        )


def check_modules(modules: Sequence[nn.Module]) -> None:
    """Modules whose parameters are there, in Python.

    Raises:
        TypeError: a scripted or traced one.
        ValueError: a lazy one before its first batch.
    """
    for module in modules:
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(
                f"{type(module).__name__} holds its parameters outside Python, where nothing can stand in for them. "
                "Pass the module that it was scripted or traced from."
            )
        if isinstance(module, LazyModuleMixin) and cast("Any", module).has_uninitialized_params():
            raise ValueError(
                f"{type(module).__name__}, a lazy module of the discriminator, has no tensors yet. Run the "
                "discriminator once on a batch before."
            )


def check_gradient_hooks(params: Iterable[Tensor]) -> None:
    """No hook on the node that adds to a parameter's ``.grad``, which in an unroll never runs.

    Raises:
        ValueError: there is one.
    """
    p: Any
    for p in params:
        # Without such a node there is no hook on it, and a node would be one more who uses the tensor.
        if not p.requires_grad or p._use_count() == 1:
            continue
        node = torch.autograd.graph.get_gradient_edge(p).node
        for register in (node.register_hook, node.register_prehook):
            handle: Any = register(lambda *_: None)
            others = len(handle.hooks_dict_ref()) - 1
            handle.remove()
            if others:
                raise ValueError(
                    f"A parameter of shape {tuple(p.shape)} has a hook on its AccumulateGrad node, which in an unroll "
                    "never runs. Remove the hook, and pass what it does as grad_transform=, or use p.register_hook."
                )


def refuse_steps(optimizers: Iterable[torch.optim.Optimizer], undo: Undo) -> None:
    """From here on a loss that steps one of torch's own optimizers itself is stopped before anything has moved."""
    # As register_step_pre_hook does it, at a tenth of its time.
    hooks: list[dict[Any, Any]] = [o._optimizer_step_pre_hooks for o in optimizers]

    def put_back() -> None:
        for of_one in hooks:
            of_one.pop(_refuse_step, None)

    undo.later(put_back)
    for of_one in hooks:
        of_one[_refuse_step] = _refuse_step


def _refuse_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    if is_unrolling():
        raise ValueError(
            f"A loss (d_loss or g_loss) calls backward() and step() of the {type(optimizer).__name__} itself. Return "
            "the sum of all terms instead: the unroll takes the steps."
        )


def check_examined(unrolled: Any, function: str, batch: Sequence[Any]) -> None:
    """The loss itself, not what it returns, with gradients, and a batch in order.

    Raises:
        TypeError: something else.
        RuntimeError: under ``torch.no_grad()``.
    """
    # Not isinstance of UnrolledGeneratorLoss, which imports this.
    if not hasattr(unrolled, "plan") or isinstance(unrolled, type):
        raise TypeError(
            f"{function} got {described(unrolled)} first. Pass the UnrolledGeneratorLoss, and then the batch: "
            f"{function}(unrolled, real, fake)."
        )
    if not torch.is_grad_enabled():
        raise RuntimeError(f"{function} compares gradients, and torch.no_grad() is on. Leave that context.")
    check_order(unrolled.d_loss, batch)


def check_finite(
    d_losses: list[Tensor],
    g_loss: Tensor,
    given: dict[str, list[Tensor]],
    gradient: Sequence[Tensor] = (),
    again: Callable[[], object] | None = None,
) -> None:
    """Losses that are numbers, with a gradient that is.

    Args:
        d_losses: of the inner steps.
        g_loss: after them.
        given: tensors of the call, by where they are from, which may be to blame.
        gradient: of the result.
        again: the same once more, to find out where a gradient has gone wrong.

    Raises:
        ValueError: one of the losses is not, or the gradient.
    """
    # Plain tensors: a class of the user's own, such as a noise that fake is made from, may have a to() of its own.
    g_loss = g_loss.as_subclass(Tensor)
    losses = [v.as_subclass(Tensor).reshape(()).to(g_loss) for v in (*d_losses, g_loss)]
    sums = [(g.abs() if g.is_complex() else g).detach().sum().to(g_loss) for g in gradient if type(g) is Tensor]
    # One transfer from the device for all.
    numbers = torch.stack([*losses, *sums]).tolist()
    values, totals = numbers[: len(losses)], numbers[len(losses) :]
    wrong = [k for k, value in enumerate(values) if not isfinite(value)]
    if not wrong:
        # A sum of large numbers overflows where none of them has.
        if not all(map(isfinite, totals)) and not all(g.isfinite().all() for g in gradient):
            raise ValueError(
                f"The losses are finite, and the gradient of the unrolled one is not. {_where(again)} An unroll takes "
                "second derivatives where real steps take first ones, and these may be finite alone. Keep away from "
                "the point, by an eps inside a root or a norm, or pass stop_gradient=True for the first term of "
                "Eq. 12."
            )
        return
    name = "g_loss after the inner steps" if wrong[0] == len(d_losses) else f"d_loss at inner step {wrong[0]}"
    for place, tensors in given.items():
        for t in tensors:
            if t.is_floating_point() and not (t.numel() and t.isfinite().all()):
                raise ValueError(
                    f"{name} is {values[wrong[0]]}, and the {place} that was given has a tensor of shape "
                    f"{tuple(t.shape)} that is empty or not finite. Look where it comes from"
                    + (": a generator, which has diverged." if t.grad_fn is not None else ".")
                )
    raise ValueError(
        f"{name} is {values[wrong[0]]}; d_loss along the steps: {values[:-1]}. Lower the discriminator's learning rate "
        "or steps, or look for the operation that overflows."
    )


def _where(again: Callable[[], object] | None) -> str:
    """In which operator autograd's anomaly mode finds the first NaN."""
    # Other processes, which may have found nothing, would not come along.
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    if again is not None and alone:
        try:
            with warnings.catch_warnings(), torch.autograd.set_detect_anomaly(True):
                warnings.simplefilter("ignore")
                again()
        # A loss may fail when it runs again; that is not what is asked here.
        except Exception as error:  # noqa: BLE001
            if "returned nan values" in str(error):
                return str(error)
    return "In which operator could not be found out."
