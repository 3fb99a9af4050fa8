"""Any other optimizer: its own ``step()``, traced into a differentiable function.

The optimizer runs on stand-ins for its parameters, gradients and state. What it does to them is recorded as a graph,
freed of in-place operations, and run under autograd. Whatever the step decides in Python, by a step count or a learning
rate, is a constant of the trace, which serves for as long as these are the same; where it decides by a tensor
(``if norm > 1``), for as long as the decision is the same, too. A step that computes with numbers read out of tensors
(``.item()``) leaves no trace of where they came from, and is refused.
"""

import weakref
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, make_fx
from torch.overrides import TorchFunctionMode

from .block import Block, pack, unpack
from .replica import Frozen, parameters, put_together, take_apart
from .rule import UpdateRule, sqrt

# A call uses one trace for each inner step, and the next call, a live step later, all of them but one.
_KEEP = 64


class Trace(NamedTuple):
    """A step as a function.

    Attributes:
        function: parameters, gradients and state tensors → the same after the step, then what it decided by.
        decisions: how it decided when it was traced.
        frozen: the rest of the state after it.
    """

    function: Callable[..., Sequence[Tensor]]
    decisions: list[bool]
    frozen: Frozen


class Traced(UpdateRule):
    """θ, state ← the optimizer's own ``step()``, for all of its parameters at once.

    Args:
        optimizer: the live one; it is never stepped.
        moved: for each of its parameters, whether it is unrolled; the others keep still.
    """

    elementwise: ClassVar[bool] = False
    joint: ClassVar[bool] = True

    def __init__(self, optimizer: torch.optim.Optimizer, moved: Sequence[bool]) -> None:
        # Traces are kept for as long as their optimizer lives, which they must not prolong.
        self._optimizer = weakref.ref(optimizer)
        self.live = parameters(optimizer)
        self.moved = moved
        self.shapes = [p.shape for p, m in zip(self.live, moved, strict=True) if m]
        self.used = [True] * len(self.shapes)
        self.traces: OrderedDict[Any, list[Trace]] = OrderedDict()

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The live optimizer."""
        optimizer = self._optimizer()
        assert optimizer is not None, "whoever unrolls with an optimizer holds it"
        return optimizer

    def for_used(self, used: list[bool]) -> "Traced":
        """The rule of a step in which only some of the unrolled parameters have a gradient."""
        rule = Traced(self.optimizer, self.moved)
        rule.used, rule.traces = used, self.traces
        return rule

    def block(self, index: tuple[int, ...], params: Sequence[Tensor]) -> Block:
        """Where an unroll starts: the unrolled parameters, and the live state."""
        try:
            frozen, tensors = take_apart(self.optimizer, self.live)
        except TypeError as error:
            name = type(self.optimizer).__name__
            raise TypeError(
                f"{name} cannot be unrolled: {error}. Write an UpdateRule, and register_rule() it."
            ) from error
        packed = pack([p.detach() for p in params])
        return Block(self, index, tuple(self.shapes), packed.clone(), _state(frozen, tensors))

    def update(self, param: Tensor, grad: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One step of all parameters, packed; ``grad`` is zero where there is no gradient."""
        frozen, *tensors = state
        params = unpack(param, self.shapes)
        grads = [g for g, used in zip(unpack(grad, self.shapes), self.used, strict=True) if used]
        inputs = [*params, *grads, *tensors]
        key = (frozen.key, tuple(self.used), *((t.shape, t.dtype, t.device) for t in inputs))
        traces = self.traces.setdefault(key, [])
        self.traces.move_to_end(key)
        while len(self.traces) > _KEEP:
            self.traces.popitem(last=False)
        for trace in traces:
            new, decided = _run(trace, inputs)
            if decided == trace.decisions:
                break
        else:
            trace = self._trace(frozen, [t.detach() for t in inputs])
            traces.append(trace)
            new, _ = _run(trace, inputs)
        return pack(new[: len(params)]), _state(trace.frozen, new[len(params) :])

    def _trace(self, frozen: Frozen, inputs: list[Tensor]) -> Trace:
        name = type(self.optimizer).__name__
        try:
            with torch.no_grad():
                return _record(self, frozen, inputs)
        except Exception as error:
            reason = str(error).strip().split("\n")[0]
            raise TypeError(
                f"{name} cannot be unrolled: tracing its step() failed with {type(error).__name__}: {reason} A step "
                "that computes with numbers read out of tensors, with .item(), has no trace. Write an UpdateRule, and "
                "register_rule() it."
            ) from error


def _record(rule: Traced, frozen: Frozen, inputs: list[Tensor]) -> Trace:
    n, m = len(rule.shapes), sum(rule.used)
    left: list[Frozen] = []
    values: list[Tensor] = []
    asked = _Decisions()

    def step(*inputs: Tensor) -> list[Tensor]:
        params, grads, tensors = iter(inputs[:n]), iter(inputs[n : n + m]), [t.clone() for t in inputs[n + m :]]
        used = iter(rule.used)
        stand_ins = []
        for live, moved in zip(rule.live, rule.moved, strict=True):
            stand_in = (next(params) if moved else live.detach()).clone()
            if moved and next(used):
                stand_in.grad = next(grads).clone()
            stand_ins.append(stand_in)
        replica = put_together(rule.optimizer, frozen, stand_ins, tensors)
        with asked:
            replica.step()
        after, tensors = take_apart(replica, stand_ins)
        moved_params = [p for p, moved in zip(stand_ins, rule.moved, strict=True) if moved]
        left[:], values[:] = [after], [*moved_params, *tensors, *asked.tensors]
        return values

    graph = make_fx(step)(*inputs)
    after = left[0]
    expected = [v.clone() for v in values]
    function = _differentiable(make_fx(torch.func.functionalize(graph))(*inputs))
    for got, wanted in zip(function(*inputs), expected, strict=True):
        if not torch.equal(got, wanted):
            raise RuntimeError("the recorded step gives another result than step() itself.")
    return Trace(function, asked.values, after)


class _Decisions(TorchFunctionMode):
    """Lets a step under trace ask a tensor for a yes or no, and notes question and answer."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []
        self.values: list[bool] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.__bool__:
            return self._answer(args[0])
        if func in (torch.allclose, Tensor.allclose):
            return self._answer(torch.isclose(*args, **kwargs).all())
        scale = kwargs.get("alpha")
        if isinstance(scale, Tensor):
            # Torch reads the number out; a product keeps it in the graph.
            return func(args[0], args[1] * scale, **{k: v for k, v in kwargs.items() if k != "alpha"})
        return func(*args, **kwargs)

    def _answer(self, question: Tensor) -> bool:
        with disable_proxy_modes_tracing():
            answer = bool(question)
        self.tensors.append(question)
        self.values.append(answer)
        return answer


def _run(trace: Trace, inputs: Sequence[Tensor]) -> tuple[list[Tensor], list[bool]]:
    """What the step moved, and how it would have decided with these inputs."""
    outputs = list(trace.function(*inputs))
    n = len(outputs) - len(trace.decisions)
    return outputs[:n], [bool(t) for t in outputs[n:]]


def _differentiable(graph: fx.GraphModule) -> fx.GraphModule:
    """The same graph without the nodes that cut autograd, and with a square root that is safe at 0."""
    aten = torch.ops.aten
    for node in graph.graph.nodes:
        if node.target in (aten.detach.default, aten.alias.default):
            node.replace_all_uses_with(node.args[0])
        elif node.target == aten.copy.default:
            node.target = _copy
        elif node.target == aten.sqrt.default or (node.target == aten.pow.Tensor_Scalar and node.args[1] == 0.5):
            node.target, node.args = sqrt, node.args[:1]
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _copy(to: Tensor, source: Tensor) -> Tensor:
    return source.to(to).expand_as(to)


def _state(frozen: Frozen, tensors: Sequence[Tensor]) -> Any:
    return _state_type(len(tensors))(frozen, *tensors)


@cache
def _state_type(tensors: int) -> Any:
    return namedtuple("TracedState", ["frozen", *(f"tensor{i}" for i in range(tensors))])  # pyright: ignore[reportUntypedNamedTuple]
