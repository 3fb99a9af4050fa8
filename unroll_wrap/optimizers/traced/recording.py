"""Turn one step of a live optimizer into a function: record it, remove in-place operations, and test the result.

The live optimizer, or whatever the user steps in its place, is brought into the required state and stepped under
``make_fx``, and everything is restored. The function has to agree with the step where it was recorded, and nearby: a
number that the step reads out of a tensor is a constant in the function, which makes them differ there.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import compress
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, make_fx

from ...live.random_state import EveryState
from ...live.snapshot import Snapshot
from ...torch_private import use_lazy_graph_module
from .graphs import compiled, differentiable
from .operations import Asked, is_recorded, rename
from .perturb import close, same, shifted, varied_by
from .step_inputs import Seen, look
from .trace import Depends, State, Trace

# While a step is traced, torch.fx replaces methods of nn.Module for the whole process, so only one thread may trace.
_TRACING = threading.RLock()


class Recorder(NamedTuple):
    """What it takes to step an optimizer from any state, and to see what the step does."""

    stepper: Any  # The live optimizer or wrapper.
    params: Sequence[Tensor]  # All parameters that it steps.
    moved: Sequence[bool]  # For each parameter, whether it is unrolled.
    used: Sequence[bool]  # For each unrolled parameter, whether it has a gradient.
    promoted: frozenset[str]  # The paths of numbers that are no constants.

    def record(self, state: State, inputs: Sequence[Tensor]) -> Trace:
        """Return the step from a state as a function of ``inputs``: parameters, gradients and holes.

        All parameters are among them, the unrolled ones first.

        Raises:
            Depends: numbers that were taken for constants depend on gradients.
            RuntimeError: the step cannot be recorded.
        """
        with _TRACING:
            return self._record(state, inputs)

    def _record(self, state: State, inputs: Sequence[Tensor]) -> Trace:
        # At the start of an unroll the inputs share memory with the live tensors, which are about to be stepped.
        inputs = [t.detach().clone() for t in inputs]
        with self._put_back(state) as (start, live):
            left: list[Any] = []
            asked, random = Asked(), EveryState(self.params, ())
            # Torch keeps the source of compiled graph modules. Lazy ones are compiled when first run, which is never.
            with use_lazy_graph_module(True):
                graph = make_fx(lambda *given: self._run(start, given, asked, left))(*inputs)
                if not random.is_now():
                    raise RuntimeError("it draws random numbers, and a trace would draw others.")
                function = compiled(differentiable(make_fx(torch.func.functionalize(compiled(graph)))(*inputs)))
            values, seen, snapshot = left
            with torch.no_grad():
                found = list(function(*inputs))
            if not all(map(same, found, values)):
                raise RuntimeError("the recorded step gives another result than step() itself.")
            trace = Trace(function, asked.values, State(seen, snapshot))
            self._check_nearby(trace, start, inputs, asked.rewritten)
        snapshot.let_go(live)
        return trace

    def agrees(self, state: State, inputs: Sequence[Tensor], found: Sequence[Tensor], after: Seen) -> bool:
        """Return whether the live step gives what a trace has found for the same inputs, and leaves what it left."""
        with _TRACING, self._put_back(state) as (start, _):
            self._place(start, [t.detach().clone() for t in inputs])
            # In the form in which operators were recorded.
            with Asked(), torch.enable_grad():
                self.stepper.step()
            seen = self._look()
            return seen.key == after.key and all(map(same, [*self._unrolled(), *seen.holes], found))

    def seen_in(self, state: State, inputs: Sequence[Tensor]) -> Seen:
        """Return what is seen of a state, with the current choice of numbers that are taken for constants."""
        with self._put_back(state) as (start, _):
            self._place(start, inputs)
            return look(self.stepper, self.params, self.promoted)

    @contextmanager
    def _put_back(self, state: State) -> Iterator[tuple[State, Snapshot]]:
        """Restore the live objects and those of a recorded state at the end, whatever happens.

        Yields:
            The state with a snapshot, the live one where it has none; and the snapshot of the live objects.
        """
        # The loop may have replaced a tensor's memory (p.data = ...) and still hold what the recording returns to.
        recorded = Snapshot([*state.snapshot.objects(), *state.snapshot.memories()] if state.snapshot else ())
        live = Snapshot([self.stepper, *self.params])
        with EveryState(self.params, ()).replayed(), recorded, live:
            yield state if state.snapshot else state._replace(snapshot=live), live

    def _place(self, state: State, inputs: Sequence[Tensor]) -> None:
        """Bring the live objects into a state with the tensors ``inputs``."""
        assert state.snapshot is not None
        state.snapshot.restore()
        params, grads, holes = self._divided(inputs)
        with torch.no_grad():
            for hole, value in zip(state.seen.holes, holes, strict=True):
                if hole.shape == value.shape:
                    hole.data.copy_(value)
                else:
                    hole.data = value.detach().clone()
            for view in state.seen.views:
                if view.tensor.shape != view.place[0]:
                    view.tensor.data = view.of(view.base.data)
            # Parameters may be views of holes, so they come last.
            for live, value in zip(self._ordered(), params, strict=True):
                live.data.copy_(value)
        for p in self.params:
            p.grad = None
        for p, g in zip(self._with_gradient(), grads, strict=True):
            p.grad = g.detach().clone()

    def _run(self, state: State, given: Sequence[Tensor], asked: Asked, left: list[Any]) -> list[Tensor]:
        """Run the live step under trace, from a state with the tensors ``given``."""
        with disable_proxy_modes_tracing():
            self._place(state, given)
        self._name(state, given)
        with asked, torch.enable_grad():
            self.stepper.step()
        with disable_proxy_modes_tracing():
            seen = self._look()
            snapshot = self.snapshot(seen)
        out = [*self._unrolled(), *seen.holes]
        known = list(map(is_recorded, out))
        with disable_proxy_modes_tracing():
            # A tensor that the graph does not know is the same for all inputs.
            out = [t if k else t.detach().clone() for t, k in zip(out, known, strict=True)]
            left[:] = [t.detach().clone() for t in (*out, *asked.tensors)], seen, snapshot
        return [*out, *asked.tensors]

    def _name(self, state: State, given: Sequence[Tensor]) -> None:
        """Let the live tensors stand for the traced inputs in the graph."""
        params, grads, holes = self._divided(given)
        lying = {id(v.tensor) for v in state.seen.views}
        with torch.no_grad():
            pairs = [*zip(self._ordered(), params, strict=True), *zip(state.seen.holes, holes, strict=True)]
            for live, value in pairs:
                if id(live) not in lying:
                    rename(live, value.clone())
            values = {id(live): value for live, value in pairs}
            for view in state.seen.views:
                stand_in = view.of(view.base)
                if (value := values.get(id(view.tensor))) is not None:
                    stand_in.copy_(value)
                rename(view.tensor, stand_in)
            for live, value in zip(self._with_gradient(), grads, strict=True):
                assert live.grad is not None
                rename(live.grad, value.clone())
            for live in state.seen.constants:
                with disable_proxy_modes_tracing():
                    number = live.item()
                # make_fx knows the value of a tensor made in this form, so a step may read it out.
                rename(live, torch.tensor(number, dtype=live.dtype, device=live.device).reshape(live.shape))

    def _look(self) -> Seen:
        """Return what is seen of the state that a step has left."""
        for p in self.params:
            p.grad = None
        return look(self.stepper, self.params, self.promoted)

    def snapshot(self, seen: Seen) -> Snapshot:
        """Return a snapshot of everything that ``_place`` does not write."""
        tensors = (*self.params, *seen.holes, *(v.tensor for v in seen.views))
        return Snapshot([self.stepper, *self.params], bare={id(t) for t in tensors})

    def _check_nearby(self, trace: Trace, state: State, inputs: Sequence[Tensor], rewritten: bool) -> None:
        """Raise if the live step and the function differ for other numbers that lead to the same decisions."""
        for scale in (1e-3, 1e-6, 0.0):
            varied = varied_by(inputs, scale)
            with torch.no_grad():
                outputs, decisions = trace.run(varied)
            if decisions == trace.decisions:
                break
        # If an operator was put into another form, both agree to the last bit only if the live step uses it too.
        for mode, agree in ((Asked(), same), (nullcontext(), close)) if rewritten else ((nullcontext(), same),):
            self._place(state, varied)
            foreign = shifted(state.seen.foreign)
            with mode, torch.enable_grad():
                self.stepper.step()
            for t, before in foreign:
                if not same(t.detach(), before):
                    raise RuntimeError(f"it changes {state.seen.paths[id(t)]}, which is none of its parameters.")
            seen = self._look()
            self._compare(trace.after.seen, seen)
            found = [*self._unrolled(), *seen.holes]
            if not all(map(agree, outputs, found)):
                if agree is close:
                    raise RuntimeError(
                        "with operators on lists of tensors it gives another result. Pass foreach=False."
                    )
                raise RuntimeError(
                    "it computes with numbers that it reads out of tensors, with .item(), .tolist(), .numpy() or in "
                    "code of its own, or with buffers of the modules, and these would be constants."
                )

    def _compare(self, recorded: Seen, again: Seen) -> None:
        """Raise if what a step leaves besides tensors depends on the numbers in them."""
        if recorded.key != again.key:
            if depending := recorded.other_counts(again):
                raise Depends(depending)
            place = recorded.difference(again)
            raise RuntimeError(f"{place} is not the same for other gradients, and a trace would take it for constant.")

    def _divided(self, inputs: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
        n, m = len(self.params), sum(self.used)
        return inputs[:n], inputs[n : n + m], inputs[n + m :]

    def _unrolled(self) -> list[Tensor]:
        return list(compress(self.params, self.moved))

    def _ordered(self) -> list[Tensor]:
        """Return the unrolled parameters, then the others."""
        return self._unrolled() + [p for p, m in zip(self.params, self.moved, strict=True) if not m]

    def _with_gradient(self) -> list[Tensor]:
        return list(compress(self._unrolled(), self.used))
