"""The rule of any other optimizer: its own ``step()``, traced into a differentiable function.

The live optimizer itself is stepped, once for each trace, and restored bit for bit. What it does to parameters and to
the tensors that it keeps is recorded as a graph, freed of in-place operations, and run under autograd. A trace serves
as long as everything that the step decides by in Python, such as a step count or a learning rate, is the same; and,
where the step decides by a tensor (``if norm > 1``), as long as the decision is the same. What the step reads from
elsewhere, such as a learning rate in a module, is not seen, nor is a number that depends on gradients where they are
larger than those of the trace. So whenever a trace is used again, it is compared with a live step, and if they differ,
all traces are forgotten.
"""

import re
from collections import OrderedDict, namedtuple
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import compress
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..block import Block, pack, unpack
from ..rule import UpdateRule
from .recording import Recorder
from .step_inputs import look
from .trace import Depends, State, Trace

# A call uses one trace for each inner step; the next call, one live step later, uses all but one of them again.
_KEEP = 64


class _At(NamedTuple):
    """The part of the state that is not differentiated."""

    state: State  # What a step decides by in Python, such as counts and options, with a snapshot of it.
    carried: tuple[Tensor, ...]  # The holes that are not floating-point tensors.


@dataclass
class _Memory:
    """What earlier steps have found out about an optimizer."""

    # The traces by key, those used last at the end.
    traces: OrderedDict[Any, list[Trace]] = field(default_factory=OrderedDict)
    promoted: frozenset[str] = frozenset()  # The paths of numbers that turned out not to be constants.

    def of(self, key: Any) -> list[Trace]:
        """Return the traces with a key, and forget the keys whose last use is longest ago."""
        traces = self.traces.setdefault(key, [])
        self.traces.move_to_end(key)
        while len(self.traces) > _KEEP:
            self.traces.popitem(last=False)
        return traces


class Traced(UpdateRule):
    """θ, state ← the optimizer's own ``step()``, for all of its parameters at once.

    Args:
        stepper: the live optimizer, or a wrapper that steps in its place.
        live: all parameters that it steps.
        moved: for each parameter, whether it is unrolled; the others stay as they are.
    """

    elementwise: ClassVar[bool] = False
    joint: ClassVar[bool] = True

    def __init__(self, stepper: Any, live: Sequence[Tensor], moved: Sequence[bool]) -> None:
        self.stepper = stepper
        self.live = live
        self.moved = moved
        self.shapes = [p.shape for p in compress(live, moved)]
        self.used = [True] * len(self.shapes)
        self.memory = _Memory()

    def for_used(self, used: list[bool]) -> "Traced":
        """Return the rule for a step in which only the ``used`` ones of the unrolled parameters have a gradient."""
        rule = Traced(self.stepper, self.live, self.moved)
        rule.used, rule.memory = used, self.memory
        return rule

    def block(self, index: tuple[int, ...], params: Sequence[Tensor]) -> Block:
        """Return the start of an unroll: the unrolled parameters and the live state."""
        try:
            seen = look(self.stepper, self.live, self.memory.promoted)
        except TypeError as error:
            name = type(self.stepper).__name__
            raise TypeError(
                f"{name} cannot be unrolled: {error}. Write an UpdateRule, and register_rule() it."
            ) from error
        packed = pack([p.detach() for p in params])
        holes = [t.detach() for t in seen.holes]
        # While losses run, D's parameters hold the unroll's tensors, so a step that can reach D needs a snapshot.
        at = State(seen, self._recorder().snapshot(seen) if seen.knows_modules else None)
        return Block(self, index, tuple(self.shapes), packed.clone(), _state(at, holes))

    def update(self, param: Tensor, grad: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Take one step of all parameters, packed into one vector; ``grad`` is zero where there is no gradient."""
        at, holes = _taken_apart(state)
        params = unpack(param, self.shapes)
        grads = list(compress(unpack(grad, self.shapes), self.used))
        while True:
            still = [p.detach() for p, moved in zip(self.live, self.moved, strict=True) if not moved]
            inputs = [*params, *still, *grads, *holes]
            key = (at.seen.key, tuple(self.used), *((t.shape, t.dtype, t.device) for t in inputs))
            traces = self.memory.of(key)
            runs = ((trace, *trace.run(inputs)) for trace in traces)
            trace, new = next(((trace, new) for trace, new, decided in runs if decided == trace.decisions), (None, []))
            if trace is None:
                try:
                    traces.append(trace := self._trace(at, [t.detach() for t in inputs]))
                except Depends as found:
                    at, holes = self._promote(found.paths, at, holes, inputs)
                    continue
                new, _ = trace.run(inputs)
            elif not self._recorder().agrees(at, inputs, new, trace.after.seen):
                self.memory.traces.clear()
                continue
            return pack(new[: len(params)]), _state(trace.after, new[len(params) :])

    def _recorder(self) -> Recorder:
        return Recorder(self.stepper, self.live, self.moved, self.used, self.memory.promoted)

    def _trace(self, at: State, inputs: list[Tensor]) -> Trace:
        try:
            return self._recorder().record(at, inputs)
        except Depends:
            raise
        except Exception as error:
            name, reason = type(self.stepper).__name__, str(error).strip().split("\n")[0].rstrip(".")
            if "INTERNAL ASSERT" in reason or "tracing tensor" in reason:
                reason = "it reads numbers out of tensors, by .item() say, or has an operator that cannot be recorded"
            if kernel := re.search(r"custom \(non-ATen\) operator.*annotations: ([\w:.]+)", reason):
                reason = f"it uses a kernel of its own, {kernel[1]}"
            raise TypeError(
                f"{name} cannot be unrolled: tracing its step() failed with {type(error).__name__}: {reason}. Write an "
                "UpdateRule, and register_rule() it."
            ) from error

    def _promote(
        self, paths: Sequence[str], at: State, holes: Sequence[Tensor], inputs: Sequence[Tensor]
    ) -> tuple[State, list[Tensor]]:
        """Return the same state, in which the numbers at these paths are no longer constants."""
        self.memory.promoted |= frozenset(paths)
        seen = self._recorder().seen_in(at, [t.detach() for t in inputs])
        values = {id(t): value for t, value in zip(at.seen.holes, holes, strict=True)}
        for t, count in zip(at.seen.constants, at.seen.key.counts, strict=True):
            values[id(t)] = torch.tensor(count, dtype=t.dtype, device=t.device).reshape(t.shape)
        return State(seen, at.snapshot), [values[id(t)] for t in seen.holes]


def _state(state: State, holes: Sequence[Tensor]) -> Any:
    smooth = [t for t in holes if t.is_floating_point()]
    carried = tuple(t for t in holes if not t.is_floating_point())
    return _state_type(len(smooth))(_At(state, carried), *smooth)


def _taken_apart(state: Any) -> tuple[State, list[Tensor]]:
    at, *smooth = state
    carried, rest = iter(at.carried), iter(smooth)
    return at.state, [next(rest if t.is_floating_point() else carried) for t in at.state.seen.holes]


@cache
def _state_type(tensors: int) -> Any:
    return namedtuple("TracedState", ["at", *(f"tensor{i}" for i in range(tensors))])  # pyright: ignore[reportUntypedNamedTuple]
