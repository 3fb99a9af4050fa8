"""``Compiled``: compile one inner step and its pullback, and call each of the two functions K times.

One graph for the whole unrolled call would take minutes to compile and would run slower than eager mode.
"""

import logging
import threading
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...live.random_state import RandomState
from ...optimizers.block import Block, values_of
from ...optimizers.closed import tensors_of
from ...unrolling.one_process import Grads
from ...unrolling.step import Point, Step
from ...unrolling.step_gradients import gradients
from ...unrolling.unroll import Unroll
from ..sweep import Backward, Tape
from .effects import without_effects
from .functions import Batch, in_closed_form
from .program import Program, Taken, run_eagerly

logger = logging.getLogger("unroll_wrap")

# The number of programs for one loss: ever new batch shapes, or a new lambda in every call, would compile forever.
_MOST = 8
_tracing = threading.RLock()  # torch's tracer patches modules of its own while it runs.


@dataclass(frozen=True)
class Compiled(Backward):
    """Several times faster for small networks, where calling operators costs more than computing.

    The loss is traced: its Python runs once, and all that it reads besides its arguments is taken for constant. A loss
    that draws random numbers, keeps a count, branches on data, captures tensors or reaches a generator cannot be
    compiled; it runs as under ``Store()``, and the logger ``unroll_wrap`` says so once. The first call, and one with
    more steps than any before, takes all its steps as ``Store()`` does and compares the compiled loss and gradients
    with these; so does one after 16, 32, 64, … calls. Every other call compares them in its first step.

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
        return _Stack(unroll, first, steps, self)

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
                with _tracing, without_effects(unroll):
                    self._programs[key] = Program(unroll, point, batch)
        except FloatingPointError:
            return None  # A later call will compile it: this one is about to raise.
        except Exception as error:  # noqa: BLE001, a compiler's errors have no common type; all are reported
            self._give_up(unroll, key, f"{type(error).__name__}: {error}")
        return self._programs.get(key)

    def _check(self, program: Program, unroll: Unroll, point: Point, batch: Batch, loss: Tensor, grads: Grads) -> bool:
        """Return whether compiled loss and gradients are still those of ``d_loss``; if not, stop using the program."""
        with RandomState(unroll.evaluate.owned).replayed():
            evaluation = run_eagerly(unroll, point, batch)
            expected = gradients(unroll.evaluate, evaluation)[0]
        right = _near(loss, grads, evaluation.loss.detach().reshape(()), expected, 100 * program.noise)
        if not right:
            reason = "its value or gradient is no longer that of its first call. Pass what changes as an argument"
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
        if key is not None:
            self._programs[key] = None


def _near(loss: Tensor, grads: Grads, expected: Tensor, expected_grads: Grads, noise: Tensor) -> bool:
    """Return whether a loss and its gradients are the expected ones but for rounding, or both losses not finite.

    ``noise`` is how far the gradients may be apart beyond a part of their own length and of the longest one's.
    """
    if [g is None for g in grads] != [g is None for g in expected_grads]:
        return False
    lengths = torch.stack([torch.linalg.vector_norm(g.detach()) for g in expected_grads if g is not None])
    eps = torch.finfo(loss.dtype).eps
    near = (loss - expected).abs() <= 10 * eps**0.75 * (1 + expected.abs())
    near &= (_apart(grads, expected_grads) <= 100 * eps**0.75 * lengths + 10 * eps * lengths.max() + noise).all()
    return bool(near | ~(loss.isfinite() | expected.isfinite()))


def _apart(grads: Grads, others: Grads) -> Tensor:
    """Return how far apart two gradients are, for each parameter that has both."""
    pairs = [(a, b) for a, b in zip(grads, others, strict=True) if a is not None and b is not None]
    return torch.stack([torch.linalg.vector_norm(a.detach() - b.detach()) for a, b in pairs])


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
    def __init__(self, unroll: Unroll, first: int, steps: int, settings: Compiled) -> None:
        self._unroll = unroll
        self.first = first
        self._settings = settings
        self._steps = steps
        self._new: list[Program] = []
        self._taken: list[Taken | Step] = []
        self._batch: Batch | None = None
        self._program: Program | None = None

    def step(self, point: Point, k: int) -> Point:
        unroll, keep = self._unroll, k >= self.first
        point, _, given = unroll.draw(point, k)
        if self._batch is None or given is not self._batch.arguments[0]:
            self._batch = Batch.of(given, unroll.evaluate.kwargs)
            self._program = self._settings._program(unroll, point, self._batch)
        batch, program, found = self._batch, self._program, None
        if program and program.proven >= self._steps and not unroll.evaluate.first_runs:
            found = program.step(
                unroll,
                point,
                batch,
                keep,
                lambda loss, grads: k > 0 or self._settings._check(program, unroll, point, batch, loss, grads),
            )
            self._program = program if found else None
        if found is None:
            found = unroll.step(point, k, given, differentiable=keep)
            if self._program:
                self._compare(self._program, point, found[1])
        if k + 1 == self._steps:
            for one in self._new:
                one.proven = self._steps
        point, taken = found
        if keep:
            self._taken.append(taken)
        return point

    def _compare(self, program: Program, point: Point, step: Step) -> None:
        """Compare a new program with a step that it could have taken, and stop using it if it differs."""
        unroll, batch = self._unroll, self._batch
        assert batch is not None
        self._new.append(program)
        unroll.evaluate.swap.out()
        loss, grads = program.loss_and_gradients(point, batch)
        # The gradient of a last bias is a difference of means of about 1, and often nearly 0.
        if _near(loss, grads, step.loss.reshape(()), step.grads, loss.new_tensor(10 * torch.finfo(loss.dtype).eps)):
            program.noise = torch.maximum(program.noise, _apart(grads, step.grads))
        else:
            reason = f"its value or gradient is not that of {step.name}. It depends on more than its arguments"
            self._settings._give_up(unroll, _key(unroll, point, batch), reason)
            self._program = None

    def pullback(self, k: int, cotangent: list[Block]) -> list[Block] | None:
        taken, first = self._taken.pop(), k == self.first
        if isinstance(taken, Step):
            return self._unroll.pullback(taken, cotangent, first)
        found = taken.program.pullback(self._unroll, taken, cotangent)
        return None if first else found
