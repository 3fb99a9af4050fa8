"""Run one of the user's losses with unrolled tensors in their discriminator, and say clearly what is wrong with it."""

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import guards
from ..call.batch import Arguments, cut
from ..call.call import Call
from ..call.logits import check_logits
from ..live.settings import Setting
from ..operators import twice_differentiable
from .autocast import Autocast
from .checkpoints import checkpoints_made
from .detached import Detached
from .graph import edge, now, reach
from .hooks import gradient_hooks, noted
from .loss_errors import misfit, misplaced, one_element
from .swap import Swap


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
        on_logits: losses that are known to be given logits.
        detached: notes what the losses cut, in a first call.
        leaf: makes the leaf for a parameter while a compiler traces; None is the usual way.
        hooks: the gradient hooks of ``owned``, each with its parameter's position.
        held: the ids of all parameters that the optimizers hold, frozen ones too.
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
    on_logits: set[Any] = field(default_factory=set)
    detached: Detached | None = None
    leaf: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        self._start = now()
        self._operators = twice_differentiable(self.swap.modules) if self.second_order else nullcontext()
        self.hooks = [(i, hook) for i, p in enumerate(self.owned) for hook in gradient_hooks(p)]
        self.rewrote = False
        self.held: set[int] = set()
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
        if on := [tuple(p.shape) for p in self.swap.switched_on() if id(p) in self.held]:
            raise ValueError(
                f"{name} switches requires_grad on for parameters of shapes {on[:4]} that D's optimizer holds and that "
                "have been frozen so far: a real step would move them from here on. Switch them on before the call and "
                "build UnrolledGeneratorLoss while they are, or leave them frozen in the loss."
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
                run = partial(self.detached.run, name.split()[0], loss) if self.detached else loss
                return run(self.discriminator, *arguments.batch, **arguments.kwargs)
        except (TypeError, AttributeError) as error:
            given = (self.discriminator, *arguments.batch)
            if told := misfit(name.split()[0], loss, given, arguments.kwargs, error):
                raise told from error
            raise
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            given = (arguments.batch, arguments.kwargs)
            if not self.autocast.active and (told := misplaced(name, self.owned, given, error)):
                raise told from error
            raise


def evaluate_plainly(
    call: Call, discriminator: Any, swap: Swap, owned: Sequence[Tensor], on_logits: set[Any]
) -> Tensor:
    """Return ``g_loss`` on clones of D's tensors, so that D's gradients, values and buffers stay out of it: K = 0."""
    swap.put([p.detach().clone().requires_grad_() for p in owned], swap.originals())
    try:
        with swap.shielded():
            value = call.g_loss(discriminator, *call.batch, **call.kwargs)
    except (TypeError, AttributeError) as error:
        if told := misfit("g_loss", call.g_loss, (discriminator, *call.batch), call.kwargs, error):
            raise told from error
        raise
    check_logits(call.g_loss, value := one_element("g_loss", value), on_logits)
    return value
