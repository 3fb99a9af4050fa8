"""Run one of the user's losses with unrolled tensors in their discriminator, and say clearly what is wrong with it."""

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import guards
from ..call.batch import Arguments, cut, tensors_in
from ..call.messages import described
from ..live.settings import Setting
from ..operators import twice_differentiable
from .autocast import Autocast, Factor
from .checkpoints import checkpoints_made
from .graph import edge, now, reach
from .hooks import gradient_hooks, noted
from .swap import Swap

GIVEN_BACK = (
    "A loss runs a sharded generator, which has given back its parameters' memory by now: no gradient would reach the "
    "shards. Call it before, and pass fake as an argument."
)
NO_SECOND_DERIVATIVE = (
    "an operator in it has no second derivative, which the second term of Eq. 12 needs. Replace the operator, pass "
    "backward=FiniteDifference(), or stop_gradient=True for the first term alone"
)


class Evaluation(NamedTuple):
    """A loss, and the leaves that it can be differentiated with respect to.

    Attributes:
        name: for messages.
        loss: one element, with its graph.
        params: the leaves in D.
        arguments: the leaves in the batch.
        outside: further leaves that the loss reaches (a generator called inside it, a head of another optimizer).
        captured: whether it reaches a graph made before the call, as a closure over ``fake`` does.
        once: functions in it that cannot be differentiated twice, though autograd does not say so.
        fragile: nodes in it that have to be repaired for that.
        hooks: handles of what the loss has registered on its graph.
        stale: whether the captured graph leads to D as it was before the call, by ``D(real)`` in a closure, say.
        behind: what else it leads to, in that case.
        nodes: all of its graph and the nodes of its leaves, if nothing but the unroll's own is in it.
    """

    name: str
    loss: Tensor
    params: list[Tensor]
    arguments: Arguments
    outside: list[Tensor]
    captured: bool
    once: list[str]
    fragile: list[Any]
    hooks: list[Any]
    stale: bool = False
    behind: Sequence[Tensor] = ()
    nodes: tuple[list[Any], list[Any]] | None = None

    @property
    def users(self) -> list[Tensor]:
        """What is the user's, one for each of ``outer``."""
        return [*self.arguments.originals, *self.outside]

    @property
    def outer(self) -> list[Tensor]:
        """The leaves that stand for something of the user's."""
        return [*self.arguments.leaves, *self.outside]


@dataclass
class Evaluator:
    """Runs losses on D.

    Attributes:
        discriminator: what the user passed; their losses receive it.
        owned: the live parameters that the optimizer moves.
        swap: puts tensors into D.
        kwargs: for every loss.
        autocast: the caller's autocast.
        second_order: whether their second derivatives will be asked for.
        settings: of torch's, in force whenever a loss runs.
        leaf: makes the leaf for a parameter while a compiler traces; None is the usual way.
        hooks: the gradient hooks of ``owned``, each with its parameter's position.
        left: what the loop has left in ``.grad``, the same way.
        rewrote: whether the last loss has given a parameter a value itself, as layers do that initialise themselves.
    """

    discriminator: Any
    owned: list[Tensor]
    swap: Swap
    kwargs: dict[str, Any]
    autocast: Autocast
    second_order: bool
    settings: Sequence[Setting] = ()
    leaf: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        self._start = now()
        self._operators = twice_differentiable(self.swap.modules) if self.second_order else nullcontext()
        self.hooks = [(i, hook) for i, p in enumerate(self.owned) for hook in gradient_hooks(p)]
        self.rewrote = False
        self.left = [(i, p.grad) for i, p in enumerate(self.owned) if p.grad is not None]

    def __call__(
        self,
        name: str,
        loss: Callable[..., Tensor],
        params: Sequence[Tensor],
        buffers: Sequence[Tensor],
        batch: tuple[Any, ...],
        walk: bool = True,
        contents: Any = None,
    ) -> Evaluation:
        """``loss(D, *batch, **kwargs)`` with fresh leaves over ``params``, and clones of ``buffers``, in D."""
        # Through .data: parameters are views of one vector, and autograd would take a write to one for a write to all.
        leaves = [p.data.requires_grad_() for p in params] if self.leaf is None else [self.leaf(p) for p in params]
        arguments = cut(batch, self.kwargs)
        self.put(leaves, buffers, contents)
        made = checkpoints_made()
        try:
            with noted() as hooks:
                value = self._run(name, loss, arguments)
        except Exception as error:
            if sys.version_info >= (3, 11):
                error.add_note(f"That was {name}, run by an UnrolledGeneratorLoss.")
            raise
        own = self.swap.handles(leaves)
        if any(leaf.grad is not None for leaf in (*own, *arguments.leaves)):
            raise ValueError(
                f"{name} calls backward() itself, and what that adds to .grad would be missing here. Return the sum of "
                "all terms instead, and take the gradients of a penalty with torch.autograd.grad."
            )
        self.rewrote = False
        for mine, param in zip(own, params, strict=True):
            # The loss has given a parameter other memory, with `p.data = ...`; the update reads the old one.
            if mine.data_ptr() != param.data_ptr() and self.leaf is None:
                param.data.copy_(mine.detach())
                self.rewrote = True
        value = one_element(name, value)
        if not walk:
            return Evaluation(name, value, leaves, arguments, [], False, [], [], hooks)
        outside, behind, captured, once, fragile, nodes, ends = reach(
            value, {id(t) for t in (*own, *arguments.aliases)}, self._start
        )
        plain = not (outside or behind or captured or fragile or hooks or self.hooks or self.autocast.active)
        plain = plain and self.leaf is None and made == checkpoints_made()
        # The objects that the user's have exchanged with hold the live tensors now: of D as it was before the call.
        lent = {id(leaf) for leaf in leaves} - {id(p) for p in own}
        stale, outside = any(id(t) in lent for t in behind), [t for t in outside if id(t) not in lent]
        behind = [t for t in behind if id(t) not in lent] if stale else []
        # A graph made before has no tensor that could be differentiated with respect to: then nothing has.
        outside = [] if captured else outside
        known = (nodes, ends) if plain else None
        return Evaluation(name, value, leaves, arguments, outside, captured, once, fragile, hooks, stale, behind, known)

    def edge(self, evaluation: Evaluation) -> list[Any]:
        """Where the graph of a loss begins that captures another; none in float16, where gradients may overflow."""
        return [] if self.autocast.first else edge(evaluation.loss, self._start)

    @cached_property
    def zeroed(self) -> list[int]:
        """Positions of the parameters whose gradient is one of zeros, as ``zero_grad(set_to_none=False)`` leaves it.

        The loop's next step then finds zeros where ``d_loss`` does not reach, and momentum and decay go on.
        """
        return [i for i, grad in self.left if not grad.is_sparse and not grad.any()]

    def put(self, leaves: Sequence[Tensor], buffers: Sequence[Tensor], contents: Any = None) -> None:
        """Let D hold these."""
        if self.leaf is None:
            self.swap.put(leaves, buffers, contents)
        else:
            self.swap.put_in_slots(leaves, buffers)

    def _run(self, name: str, loss: Callable[..., Tensor], arguments: Arguments) -> Any:
        for setting in self.settings:
            setting.ensure()
        try:
            with guards.unrolling(), self._operators, self.autocast.inside():
                return loss(self.discriminator, *arguments.batch, **arguments.kwargs)
        except TypeError as error:
            given = (self.discriminator, *arguments.batch)
            if told := misfit(name.split()[0], loss, given, arguments.kwargs, error):
                raise told from error
            raise
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            # Labels are whole numbers of any kind; images as bytes are not meant.
            given = [
                (t.device.type, t.dtype)
                for t in tensors_in(arguments.batch, arguments.kwargs)
                if t.is_floating_point() or t.dtype is torch.uint8
            ]
            own = list(dict.fromkeys((p.device.type, p.dtype) for p in self.owned))
            if set(given) <= set(own) or self.autocast.active:
                raise
            raise ValueError(
                f"{name} failed, and its batch is on {_places(given)}, in this order, while the discriminator is on "
                f"{_places(own)}. Move the batch with .to(device, dtype). The loss said: {error}"
            ) from error


def differentiate(
    name: str,
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    grad_outputs: Sequence[Tensor] | None = None,
    factor: Factor | None = None,
    **options: Any,
) -> list[Tensor | None]:
    """``autograd.grad`` with None for inputs that are not reached, and the causes of its errors named."""
    if not (outputs and inputs):
        return [None] * len(inputs)
    if factor is not None:
        return factor.differentiate(differentiate, name, outputs, inputs, grad_outputs, **options)
    with causes(name):
        return list(torch.autograd.grad(outputs, inputs, grad_outputs, allow_unused=True, **options))


@contextmanager
def causes(name: str) -> Iterator[None]:
    """The causes of autograd's errors named.

    Raises:
        RuntimeError: what autograd has raised, in the user's terms.
        ValueError: a sharded generator's parameters are gone.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "modified by an inplace operation" in text:
            cause = (
                "a tensor that an earlier evaluation still needs was changed in place, often a label buffer with "
                "fill_(). Make a new tensor instead, such as torch.full_like"
            )
        elif "not implemented" in text or "differentiate twice" in text or "double backward" in text:
            cause = NO_SECOND_DERIVATIVE
        elif "out of bounds for storage of size 0" in text:
            raise ValueError(GIVEN_BACK) from error
        elif "returned nan values" in text:  # in anomaly mode
            cause = "an operator's derivative is NaN here"
        else:
            raise
        raise RuntimeError(f"Differentiating {name}: {cause}. Autograd said: {text}") from error


def misfit(
    name: str, loss: Callable[..., Any], given: Sequence[Any], kwargs: Mapping[str, Any], error: TypeError
) -> TypeError | None:
    """A better error where a loss does not fit the arguments of the call."""
    try:
        inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss).bind(*given, **kwargs)
    except ValueError:  # of a builtin nothing is known
        return None
    except TypeError as cause:
        batch = ", ".join(described(x) for x in given[1:]) or "nothing"
        remedy = "Pass real and fake, as in unrolled(real, fake), and a loss that takes D first."
        if isinstance(loss, nn.modules.loss._Loss):
            remedy = (
                f"{type(loss).__name__} is of outputs and labels: pass a function that takes D first, and calls it."
            )
        elif isinstance(given[-1], int):
            remedy = f"Was steps={given[-1]} meant? A number of steps is passed by its name."
        return TypeError(
            f"{name} does not fit this call: {cause}. It is called as {name}(D, *batch, **kwargs), here with D, "
            f"{batch} and the keywords {sorted(kwargs)}. {remedy}"
        )
    unknown = [k for k in kwargs if "unexpected keyword" in str(error) and f"'{k}'" in str(error)]
    if unknown:
        return TypeError(
            f"{name} passed the keyword {unknown[0]!r} on, and it was not taken: {error}. Keywords of a call go to the "
            "losses, but for d_loss, g_loss, resample and steps."
        )
    return None


def one_element(name: str, value: Any) -> Tensor:
    """The loss itself, if it is one.

    Raises:
        TypeError: not a tensor.
        ValueError: not of one element.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} returned {type(value).__name__}, not a tensor. Return the scalar to minimise.")
    if value.numel() != 1:
        raise ValueError(
            f"{name} returned a tensor of shape {tuple(value.shape)}, not a scalar. Reduce it, with .mean() say."
        )
    return value


def _places(places: Sequence[tuple[str, torch.dtype]]) -> str:
    return ", ".join(f"{device} ({dtype})" for device, dtype in places) or "nothing"
