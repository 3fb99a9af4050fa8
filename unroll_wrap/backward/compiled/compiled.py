"""``Compiled``: compile one inner step and its pullback, and call each of the two functions K times.

One graph for the whole unrolled call would take minutes to compile and would run slower than eager mode.
"""

import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...live.random_state import RandomState
from ...optimizers.block import Block, values_of
from ...optimizers.closed import tensors_of
from ...unrolling.step import Point, Step
from ...unrolling.unroll import Unroll
from ..sweep import Backward, Tape
from .functions import Batch, in_closed_form
from .program import Program, Taken

logger = logging.getLogger("unroll_wrap")

# The number of programs for one loss: ever new batch shapes, or a new lambda in every call, would compile forever.
_MOST = 8


@dataclass(frozen=True)
class Compiled(Backward):
    """Several times faster for small networks, where calling operators costs more than computing.

    The loss is traced: its Python runs once, and all that it reads besides its arguments is taken for constant. A loss
    that draws random numbers, branches on data, captures tensors or reaches a generator cannot be compiled; it runs as
    under ``Store()``, and the logger ``unroll_wrap`` says so once. Every call checks the compiled loss of its first
    step against the loss itself.

    The first call takes ten seconds to two minutes, more if D has convolutions, and a few seconds in later processes,
    which find the compiled code in inductor's cache on disk. Memory is that of ``Recompute()``, and with convolutions
    and large matrices a part of that of ``Store()`` too, because a step is then not computed again.
    """

    second_order = True
    rewinds = True
    _programs: dict[Any, Program | None] = field(default_factory=dict, init=False, repr=False, compare=False)
    _alive: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    _reported: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    def __reduce__(self) -> Any:
        """Copy and pickle without the compiled programs, which serve these modules and losses only."""
        return type(self), ()

    def tape(self, unroll: Unroll, first: int, steps: int) -> Tape:
        """Return a tape that keeps the inputs of each differentiated step."""
        return _Stack(unroll, first, self)

    def _program(self, unroll: Unroll, point: Point, batch: Batch) -> Program | None:
        """Return the program for inputs of this kind, compiled on first use; None if it cannot be compiled."""
        key = None
        try:
            if any(id(t) in unroll.evaluate.swap.ids for t in batch.tensors):
                raise ValueError(f"the batch has a tensor of {unroll.names.player}. Let the losses read it there")
            key = _key(unroll, point, batch)
            if key not in self._programs:
                if len(self._programs) >= _MOST:
                    key = None
                    raise ValueError(
                        f"it is the {_MOST + 1}th kind of loss or batch. Pass {unroll.names.player_loss} once, at "
                        "construction"
                    )
                # The key holds the ids of these objects, so they have to stay alive.
                self._alive[key] = unroll.d_loss, unroll.evaluate.swap.modules
                logger.info(
                    "%s is compiled, which takes a while: kind %d of loss and batch.",
                    unroll.names.player_loss,
                    len(self._programs) + 1,
                )
                # Tracing runs the loss, which may draw random numbers.
                with RandomState(unroll.evaluate.owned).replayed():
                    self._programs[key] = Program(unroll, point, batch)
        except FloatingPointError:
            return None  # A later call will compile it: this one is about to raise.
        except Exception as error:  # noqa: BLE001, a compiler's errors have no common type; all are reported
            self._give_up(unroll, key, f"{type(error).__name__}: {error}")
        return self._programs[key]

    def _check(self, unroll: Unroll, point: Point, batch: Batch, loss: Tensor) -> bool:
        """Return whether the compiled loss still equals ``d_loss``; if not, stop using the program."""
        positional = batch.arguments[0]
        evaluation = unroll.evaluate(
            unroll.names.player_loss,
            unroll.d_loss,
            point.params(),
            point.buffers,
            positional,
            walk=False,
            contents=point.contents,
        )
        expected = evaluation.loss.detach().reshape(())
        near = (loss - expected).abs() <= 10 * torch.finfo(loss.dtype).eps ** 0.75 * (1 + expected.abs())
        right = bool(near | ~(loss.isfinite() | expected.isfinite()))
        if not right:
            reason = "its value is no longer that of its first call. Pass what changes as an argument"
            self._give_up(unroll, _key(unroll, point, batch), reason)
        return right

    @property
    def in_use(self) -> bool:
        """Whether any loss has been compiled."""
        return any(self._programs.values())

    @property
    def kept(self) -> int:
        """The bytes that a step keeps beyond what it keeps under ``Recompute()``."""
        return max((program.kept for program in self._programs.values() if program), default=0)

    def _give_up(self, unroll: Unroll, key: Any, reason: str) -> None:
        """Run this loss as under ``Store()`` from now on, and log each reason once."""
        if reason not in self._reported:
            self._reported.add(reason)
            logger.warning("%s is not compiled but run as it is: %.500s", unroll.names.player_loss, reason)
        self._programs[key] = None


def _key(unroll: Unroll, point: Point, batch: Batch) -> Any:
    """Return a key that is equal for all inputs of the same program."""
    evaluate, whole, loss = unroll.evaluate, in_closed_form(unroll, point), unroll.d_loss
    moving = [t for b in point.blocks for t in (tensors_of(values_of(b)) if whole else [b.params])]
    rules: list[Any] = [b.rule for b in point.blocks if whole]
    return (
        # Every access to a bound method creates a new object.
        (id(getattr(loss, "__self__", loss)), getattr(loss, "__func__", None)),
        evaluate.second_order,
        bool(evaluate.hooks),
        tuple(evaluate.autocast.dtypes.items()),
        tuple((id(m), m.training) for m in evaluate.swap.modules),
        tuple((type(rule), rule.switches()) for rule in rules),
        tuple(b.index for b in point.blocks if whole),
        tuple(
            id(hook)
            for m in evaluate.swap.modules
            for hook in (*m._backward_hooks.values(), *m._backward_pre_hooks.values())
        ),
        tuple(
            (t.shape, t.stride(), t.dtype, t.device, t.requires_grad) for t in (*moving, *point.buffers, *batch.tensors)
        ),
        batch.structure(),
    )


class _Stack(Tape):
    def __init__(self, unroll: Unroll, first: int, settings: Compiled) -> None:
        self._unroll = unroll
        self.first = first
        self._settings = settings
        self._taken: list[Taken | Step] = []
        self._batch: Batch | None = None
        self._program: Program | None = None

    def step(self, point: Point, k: int) -> Point:
        unroll, keep = self._unroll, k >= self.first
        point, _, given = unroll.draw(point, k)
        if self._batch is None or given is not self._batch.arguments[0]:
            self._batch = Batch.of(given, unroll.evaluate.kwargs)
            self._program = self._settings._program(unroll, point, self._batch)
        batch, found = self._batch, None
        if self._program:
            found = self._program.step(
                unroll, point, batch, keep, lambda loss: k > 0 or self._settings._check(unroll, point, batch, loss)
            )
        if found is None:
            self._program, found = None, unroll.step(point, k, given, differentiable=keep)
        point, taken = found
        if keep:
            self._taken.append(taken)
        return point

    def pullback(self, k: int, cotangent: list[Block]) -> list[Block] | None:
        taken, first = self._taken.pop(), k == self.first
        if isinstance(taken, Step):
            return self._unroll.pullback(taken, cotangent, first)
        found = taken.program.pullback(self._unroll, taken, cotangent)
        return None if first else found
