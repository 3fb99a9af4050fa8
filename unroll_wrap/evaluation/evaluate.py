"""Run one of the user's losses with unrolled tensors in the discriminator, and raise errors that explain its faults."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Any

import torch
from torch import Tensor

from .. import guards
from ..call.batch import Arguments, cut, distinct
from ..call.borrowed import Borrowed, Given
from ..call.runs import Run, is_closed, mark
from ..live.settings import Setting
from ..operators.replaced import twice_differentiable
from ..torch_private import put_versions
from .autocast import Autocast
from .checkpoints import checkpoints_made
from .detachments import Cut
from .evaluation import Evaluation
from .first_runs import FirstRuns
from .graph import captures, edge, now, reach
from .hooks import gradient_hooks, noted
from .loss_errors import explained, misplaced, one_element
from .swap import Swap
from .written import Written

# More than training ever counts, and less than torch's counters hold.
_versions = count(2**31)


@dataclass
class Evaluator:
    """Runs losses with given tensors in D."""

    discriminator: Any  # The object that the user passed, which the losses receive.
    owned: list[Tensor]  # The live parameters that the optimizer moves.
    swap: Swap  # Puts tensors into D.
    kwargs: dict[str, Any]  # The keyword arguments of every loss.
    autocast: Autocast  # The caller's autocast.
    second_order: bool  # Whether the losses will be differentiated twice.
    settings: Sequence[Setting]  # The settings of torch that are in force whenever a loss runs.
    on_logits: set[Any]  # The losses that are known to be given logits.
    first_runs: FirstRuns | None  # Watches the losses in a first call; None in later ones.
    frozen: Sequence[Tensor]  # Parameters that did not require grad at the call and that an optimizer holds.
    # Looks for losses that write to parameters; None where that makes no difference, or is known.
    written: Written | None
    given: Given  # The tensors of the call's batch as they were.
    who: str  # What messages call the player that moves.
    once: str | None  # The name of a loss that runs once in a call, and may change a fake that it is given.
    # Makes the leaf for a parameter while a compiler traces; None outside a compiler.
    leaf: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        self._start = now()
        self._operators = twice_differentiable(self.swap.modules) if self.second_order else nullcontext()
        # The gradient hooks of ``owned``, and the gradients that the loop has left, each with its parameter's position.
        self.hooks = [(i, hook) for i, p in enumerate(self.owned) for hook in gradient_hooks(p)]
        # A loss may ask for strides, or go by them (as_strided), and the parameters of a step are packed without any.
        self._strided = [(i, p.stride()) for i, p in enumerate(self.owned) if not p.is_contiguous()]
        self.left = [(i, p.grad) for i, p in enumerate(self.owned) if p.grad is not None]
        self.borrowed = Borrowed()
        self.guarded: list[Tensor] = []  # What the last loss has given to ``unroll_wrap.detach``.
        self.rewrote = False  # Whether the last loss set a parameter, as a layer that initialises itself does.

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
        """Run ``loss(D, *batch, **kwargs)`` while D holds fresh leaves made of ``params`` and clones of ``buffers``."""
        leaves = self.leaves(params, this := Run())
        arguments = cut(batch, self.kwargs, self.borrowed, this, self.swap.ids)
        self.put(leaves, buffers, contents)
        values = self.written.values(params) if self.written and not self.leaf else []
        made = checkpoints_made()
        given = (self.discriminator, *arguments.batch)
        with explained(name, loss, given, arguments.kwargs, self.who), noted() as hooks:
            value = self._run(name, loss, arguments)
        this.closed = True
        self._check_run(name, leaves, arguments)
        self._keep_rewritten(leaves, params)
        if self.written and values:
            self.written.check(name, values, params, self.who)
        value = one_element(name, value)
        if not walk:
            return Evaluation(name, value, leaves, arguments, hooks)
        return self._walk(name, value, leaves, arguments, hooks, made != checkpoints_made())

    def _check_run(self, name: str, leaves: Sequence[Tensor], arguments: Arguments) -> None:
        """Raise if a loss has done what would be missing in an unroll, or there in every step."""
        if any(leaf.grad is not None for leaf in (*self.swap.handles(leaves), *arguments.leaves)):
            raise ValueError(
                f"{name} calls backward() itself, and what that adds to .grad would be missing here. Return the sum of "
                "all terms instead, and take the gradients of a penalty with torch.autograd.grad."
            )
        self.borrowed.check(name)
        self.given.check(name)
        if name != self.once:
            arguments.check_copies(name, self.first_runs is not None)
        if on := [tuple(p.shape) for p in self.frozen if p.requires_grad]:
            raise ValueError(
                f"{name} switches requires_grad on for parameters of shapes {on[:4]} that D's optimizer holds and that "
                "have been frozen so far: a real step would move them from here on. Switch them on before the call and "
                "build UnrolledGeneratorLoss while they are, or leave them frozen in the loss."
            )

    def _keep_rewritten(self, leaves: Sequence[Tensor], params: Sequence[Tensor]) -> None:
        """Copy what a loss has set parameters to, with ``p.data = ...``, to the memory that the update reads."""
        self.rewrote = False
        for mine, param in zip(self.swap.handles(leaves), params, strict=True):
            # One with strides of its own has other memory anyway, and the loss may have written to that.
            if mine.data_ptr() != param.data_ptr() and self.leaf is None:
                param.data.copy_(mine.detach())
                self.rewrote = True

    def _walk(
        self, name: str, value: Tensor, leaves: list[Tensor], arguments: Arguments, hooks: list[Any], checkpointed: bool
    ) -> Evaluation:
        """Return the record of a run with what the loss's graph reaches; ``checkpointed`` if it has checkpoints."""
        own = self.swap.handles(leaves)
        outside, behind, captured, once, fragile, nodes, ends = reach(
            value.grad_fn, {id(t) for t in (*own, *arguments.leaves, *arguments.plain)}, self._start
        )
        special = outside or behind or captured or fragile or hooks or self.hooks or self.autocast.active
        known = None if special or self.leaf or checkpointed else (nodes, ends)
        # A graph that reaches a tensor of the live values was computed with D as it was before the call.
        lent = self.swap.lent(leaves)
        if any(is_closed(t) and id(t) not in lent for t in (*outside, *behind)):
            raise ValueError(
                f"{name} computes with a tensor that a loss has kept, with its graph, from an earlier run in an "
                "unroll: features, a fake or a loss. Its derivative would be lost, as every run has parameters and a "
                f"fake of its own. Compute it in {name} again, or keep it detached."
            )
        if self.leaf is None and own is leaves and (past := [tuple(t.shape) for t in outside if id(t) in lent]):
            raise RuntimeError(
                f"{name} gives parameters of D, of shapes {past[:4]}, to code that torch does not see, such as an "
                "extension in C++ or an autograd function's apply kept under another name. An unroll can do that, but "
                "not while a profiler, hooks on saved tensors or weak references keep D's tensors: switch them off for "
                "this call."
            )
        stale = any(id(t) in lent for t in behind)
        # A loss may have let a tensor require grad for a penalty, and no longer.
        outside = [t for t in outside if t.requires_grad and id(t) not in lent]
        # A captured graph is differentiated through a surrogate, which reaches the leaves outside it too.
        behind = distinct([*outside, *(t for t in behind if id(t) not in lent)]) if stale else []
        outside = [] if captured else outside
        alone = stale and captures(value, self._start, lent)
        return Evaluation(
            name, value, leaves, arguments, hooks, outside, captured, once, fragile, stale, alone, behind, known
        )

    def edge(self, evaluation: Evaluation) -> list[Any]:
        """Return the nodes of a loss's graph that lead to a captured one; none in float16, where gradients overflow."""
        return [] if self.autocast.first else edge(evaluation.loss, self._start)

    @property
    def cuts(self) -> dict[str, Cut]:
        """What the losses of a first call detach, by their names."""
        return self.first_runs.cuts if self.first_runs else {}

    @cached_property
    def zeroed(self) -> list[int]:
        """The positions of the parameters whose gradient is zero, as ``zero_grad(set_to_none=False)`` leaves it.

        If ``d_loss`` does not reach such a parameter, the loop's next step finds zeros, so that momentum and weight
        decay move it all the same.
        """
        return [i for i, grad in self.left if not grad.is_sparse and not grad.any()]

    def leaves(self, params: Sequence[Tensor], run: Run) -> list[Tensor]:
        """Return fresh leaves of a graph, made of ``params`` for a run of a loss."""
        if self.leaf:
            return [self.leaf(p) for p in params]
        # Leaves are made through .data, because parameters are views of one vector: after a write to one of them,
        # autograd would consider all of them changed.
        leaves = [p.data.requires_grad_() for p in params]
        for i, stride in self._strided:
            leaf = params[i].new_empty_strided(params[i].shape, stride)
            leaves[i] = leaf.copy_(params[i].data).requires_grad_()
        for leaf in leaves:
            mark(leaf, run)
        # Code that keeps what it has computed of a parameter by its version computes it anew, as after a real step, and
        # does not take what it keeps now for that of a later real step.
        put_versions(leaves, [next(_versions)] * len(leaves))
        return leaves

    def put(self, leaves: Sequence[Tensor], buffers: Sequence[Tensor], contents: Any = None) -> None:
        """Let D hold the leaves, clones of the buffers, and the contents of attributes and containers."""
        if self.leaf is None:
            self.swap.put(leaves, buffers, contents)
        else:
            self.swap.put_in_slots(leaves, buffers)

    def _run(self, name: str, loss: Callable[..., Tensor], arguments: Arguments) -> Any:
        for setting in self.settings:
            setting.ensure()
        try:
            with guards.unrolling() as self.guarded, self._operators, self.autocast.inside():
                if self.first_runs:
                    return self.first_runs.run(name.split()[0], loss, self.discriminator, arguments)
                return loss(self.discriminator, *arguments.batch, **arguments.kwargs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            given = (arguments.batch, arguments.kwargs)
            if not self.autocast.active and (told := misplaced(name, self.owned, given, error)):
                raise told from error
            raise
