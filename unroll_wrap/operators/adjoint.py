"""The gradient of a loss by formulas, without a graph of its own, and its derivative by two more passes.

With g = ∂loss/∂θ and a cotangent ḡ, the derivative of ⟨g, ḡ⟩ by θ and by the batch is that of the gradient along ḡ:
tangents of θ go forth through the loss's own graph, and what they bend comes back. Autograd builds the graph of the
gradient instead, and walks through it: twice as many calls of operators, and time for each of its nodes.
"""

from collections.abc import Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from ..optimizers.block import Joined
from .formulas import FORMULAS, Formula, one_like
from .formulas_of_layers import LAYERS
from .transforms import transformed

# A node of a graph: its number, which grows with time, the node, and where it leads.
Node = tuple[int, Any, Any]


class _Visit(NamedTuple):
    """What a pass does at one place: ``targets`` are pairs of an input and the place that it leads to."""

    place: int
    formula: Formula
    inputs: tuple[int | None, ...]
    wanted: tuple[bool, ...]
    targets: tuple[tuple[int, int], ...]


class _Plan(NamedTuple):
    """The passes through every graph of one structure: the gradient, the tangents, and back without and with θ.

    Attributes:
        checks: places, with what says whether the formula fits the node there.
    """

    checks: list[tuple[int, Any]]
    gradient: list[_Visit]
    tangents: list[_Visit]
    back: tuple[list[_Visit], list[_Visit]]


_plans: dict[Any, _Plan] = {}
# Of losses that differ from call to call there may be any number.
_MOST = 64


class Adjoint:
    """The graph of a loss that the formulas know.

    Places are numbers: those of nodes, in the order in which the loss has made them, and after these the leaves.
    """

    def __init__(self, plan: _Plan, nodes: list[Node], loss: Tensor, asked: list[int | None], outer: list[int | None]):
        self._plan = plan
        self._nodes = nodes
        self._loss = loss
        self._asked = asked
        self._outer = outer
        self._total = len(nodes) + 1 + max((a for a in (*asked, *outer) if a is not None), default=0)
        self._bars: list[Any] = []
        self._found: list[Any] = []

    @torch.no_grad()
    def gradients(self) -> list[Tensor | None]:
        """For each parameter its gradient, None where it is not reached; bit for bit as autograd has it."""
        count = len(self._nodes)
        bars: list[Any] = [None] * count
        kept: list[Any] = [None] * count
        founds: list[Any] = [None] * count
        one = one_like(self._loss)
        bars[-1] = one if self._loss.dim() == 0 else one.expand_as(self._loss)
        parts: list[Any] = [None] * self._total
        for place, formula, _, wanted, targets in self._plan.gradient:
            if (bar := bars[place]) is not None:
                _, node, following = self._nodes[place]
                found = formula.back(formula.saved(node, following), bar, wanted)
                _pass(targets, found, bars, parts)
                if formula.curved:
                    kept[place], founds[place] = bar, found
                bars[place] = None
        self._bars, self._found = kept, founds
        return _summed([None if a is None else parts[a] for a in self._asked])

    @torch.no_grad()
    def pullback(self, bars: Sequence[Tensor | None], inner: bool) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """From the cotangent of each gradient to that of each parameter, if ``inner``, and of the outer leaves."""
        us: list[Any] = [None] * self._total
        for a, bar in zip(self._asked, bars, strict=True):
            if a is not None:
                us[a] = bar
        saved: list[Any] = [None] * len(self._nodes)
        for place, formula, inputs, _, _ in self._plan.tangents:
            given = [None if j is None else us[j] for j in inputs]
            if any(u is not None for u in given):
                _, node, following = self._nodes[place]
                saved[place] = formula.saved(node, following)
                us[place] = formula.forth(saved[place], given)
        parts = self._bend(us, saved, self._plan.back[inner])
        of_params = _summed([None if a is None else parts[a] for a in self._asked]) if inner else []
        return of_params, [None if o is None else _sum(parts[o]) for o in self._outer]

    def _bend(self, us: list[Any], saved: list[Any], visits: list[_Visit]) -> list[Any]:
        lams: list[Any] = [None] * len(self._nodes)
        parts: list[Any] = [None] * self._total
        for place, formula, inputs, wanted, targets in visits:
            lam, bar = lams[place], self._bars[place]
            given = [None if j is None else us[j] for j in inputs]
            bent = bar is not None and any(u is not None for u in given)
            if lam is None and not bent:
                continue
            _, node, following = self._nodes[place]
            own = formula.saved(node, following) if saved[place] is None else saved[place]
            if bent:
                found = formula.bend(own, lam, bar, given, self._found[place], wanted)
            else:
                found = formula.back(own, lam, wanted)
            _pass(targets, found, lams, parts)
            lams[place] = saved[place] = us[place] = None
        return parts


def adjoint(
    loss: Tensor, nodes: list[Node], ends: Sequence[Any], params: Sequence[Tensor], outer: Sequence[Tensor]
) -> Adjoint | None:
    """None if there is a node in the graph that no formula is known for.

    Args:
        loss: with its graph.
        nodes: all of that graph, but for the leaves.
        ends: the nodes of these.
        params: leaves, whose gradient is asked for where they require one.
        outer: leaves of the batch, which the pullback is to reach too.
    """
    # Anomaly mode is to find the operator to blame, and a class of the user's may do anything in an operator.
    usual = type(loss) is Tensor and loss.dtype in _EXACT and not torch.is_anomaly_enabled()
    if not (nodes and usual) or transformed(loss):
        return None
    nodes.sort(key=itemgetter(0))
    if nodes[-1][1] is not loss.grad_fn:
        return None
    place = {end: len(nodes) + i for i, end in enumerate(ends)}
    at = {id(end.variable): i for end, i in place.items()}
    key: list[Any] = []
    for i, (_, node, following) in enumerate(nodes):
        kind = type(node)
        key.append(node._forward_cls if issubclass(kind, BackwardCFunction) else kind.__name__)
        for following_node, output in following:
            # What is not there was made later, by another thread.
            j = None if following_node is None else place.get(following_node, -1)
            if output or j == -1:
                return None
            key.append(j)
        place[node] = i
    asked = [at.get(id(p)) if p.requires_grad else None for p in params]
    reached = [at.get(id(leaf)) for leaf in outer]
    whole = (*key, "leaves", *asked, "batch", *reached)
    plan = _plans.get(whole)
    if plan is None:
        plan = _planned(nodes, place, asked, reached)
        if plan is None:
            return None
        if len(_plans) >= _MOST:
            _plans.clear()
        _plans[whole] = plan
    if not all(fits(*nodes[i][1:]) for i, fits in plan.checks):
        return None
    return Adjoint(plan, nodes, loss, asked, reached)


_EXACT = (torch.float32, torch.float64)


def _planned(
    nodes: list[Node], place: dict[Any, int], asked: list[int | None], outer: list[int | None]
) -> _Plan | None:
    formulas = [_formula(node) for _, node, _ in nodes]
    known = [f for f in formulas if f is not None]
    if len(known) < len(formulas):
        return None
    inputs = [tuple(None if n is None else place[n] for n, _ in following) for _, _, following in nodes]
    visits = list(zip(range(len(nodes)), known, inputs, strict=True))

    def leading(leaves: Sequence[int | None]) -> set[int]:
        """The places that lead to any of these."""
        found = {leaf for leaf in leaves if leaf is not None}
        for i, _, given in visits:
            if not found.isdisjoint(given):
                found.add(i)
        return found

    def backwards(to: set[int]) -> list[_Visit]:
        found: list[_Visit] = []
        for i, formula, given in reversed(visits):
            if i in to:
                wanted = tuple(j in to for j in given)
                targets = tuple((k, j) for k, j in enumerate(given) if j is not None and j in to)
                found.append(_Visit(i, formula, given, wanted, targets))
        return found

    moving = leading(asked)
    # A tangent matters where it meets anything that it bends.
    useful: set[int | None] = set()
    for i, formula, given in reversed(visits):
        if formula.curved or i in useful:
            useful.update(given)
    tangents = [_Visit(i, f, given, (), ()) for i, f, given in visits if i in moving and i in useful]
    checks = [(i, f.fits) for i, f, _ in visits if f.fits is not None]
    return _Plan(checks, backwards(moving), tangents, (backwards(leading(outer)), backwards(leading([*asked, *outer]))))


def _formula(node: Any) -> Formula | None:
    kind = type(node)
    # A name tells nothing of a function of the user's.
    return LAYERS.get(node._forward_cls) if issubclass(kind, BackwardCFunction) else FORMULAS.get(kind.__name__)


def _pass(targets: Sequence[tuple[int, int]], found: Sequence[Any], to: list[Any], parts: list[Any]) -> None:
    """Add to what has come to each place so far; what comes to a leaf is summed at the end."""
    for k, j in targets:
        bar = found[k]
        if bar is None:
            continue
        if j < len(to):
            to[j] = bar if to[j] is None else to[j] + bar
        elif parts[j] is None:
            parts[j] = [bar]
        else:
            parts[j].append(bar)


def _sum(parts: list[Tensor] | None) -> Tensor | None:
    if parts is None:
        return None
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _summed(parts: Sequence[list[Tensor] | None]) -> list[Tensor | None]:
    """The sum of the parts of each; as one flat vector if all are of a kind."""
    given = [p for p in parts if p is not None]
    if len(given) < max(2, len(parts)) or len({(p[0].dtype, p[0].device) for p in given}) > 1:
        return [_sum(p) for p in parts]
    found = Joined(torch.cat([p[0].reshape(-1) for p in given]), tuple(p[0].shape for p in given))
    for n in range(1, max(map(len, given))):
        these = [i for i, p in enumerate(given) if n < len(p)]
        torch._foreach_add_([found[i] for i in these], [given[i][n] for i in these])
    return found
