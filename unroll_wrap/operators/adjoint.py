"""Compute the gradient of a loss by formulas, without building its graph, and differentiate it in two more passes.

With g = ∂loss/∂θ and a cotangent ḡ of g, ⟨g, ḡ⟩ is the derivative of the loss along the tangent ḡ of θ. A forward pass
carries this tangent through the loss's own graph, and a reverse pass then gives the derivatives of ⟨g, ḡ⟩ with respect
to θ and the batch. Autograd would build the graph of g and walk through that, which takes twice as many calls of
operators, and time for each node.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, cast

import torch
from torch import Tensor

from ..optimizers.block import Joined
from ..torch_private import is_transformed
from .formulas import Tensors
from .formulas_of_operators import one_like
from .plan import Node, Plan, Visit, planned

# A loss whose graph has another structure in every call would add plans without end.
_MOST = 64
_plans: dict[Any, Plan] = {}


@dataclass(eq=False)
class Adjoint:
    """The graph of a loss in which every operator has a formula.

    A place is a number: nodes are numbered in the order in which the loss made them, and leaves come after them.
    """

    plan: Plan  # The passes through graphs of this structure.
    nodes: list[Node]  # The nodes except the leaves, in order.
    loss: Tensor  # The loss, which keeps the graph alive.
    asked: list[int | None]  # The place of each parameter; None if no gradient of it is wanted.
    outer: list[int | None]  # The place of each leaf in the batch; None if the loss does not reach it.
    # For each node with a curved formula, the cotangent of its result, and what the formula has kept.
    _bars: list[Any] = field(default_factory=list, init=False)
    _kept: list[Any] = field(default_factory=list, init=False)

    @torch.no_grad()
    def gradients(self) -> list[Tensor | None]:
        """Return the gradient of each parameter, bit for bit equal to autograd's; None where the loss has none."""
        count = len(self.nodes)
        bars: list[Any] = [None] * count
        self._bars, self._kept = [None] * count, [None] * count
        one = one_like(self.loss)
        bars[-1] = one if self.loss.dim() == 0 else one.expand_as(self.loss)
        parts: list[list[Tensor]] = [[] for _ in range(self.plan.places)]
        for place, formula, _, _, wanted, targets in self.plan.gradient:
            if (bar := bars[place]) is not None:
                _, node, following = self.nodes[place]
                found = formula.back(formula.saved(node, following), bar, wanted)
                _hand_on(found, targets, bars, parts)
                if formula.curved:
                    self._bars[place], self._kept[place] = bar, formula.kept(found)
                bars[place] = None
        return _summed([[] if a is None else parts[a] for a in self.asked])

    @torch.no_grad()
    def pullback(self, bars: Sequence[Tensor | None], inner: bool) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Pull the cotangents of the gradients back to the parameters and to the outer leaves; None stands for zero.

        The first list is empty unless the cotangents of the parameters, the ``inner`` leaves, are wanted.
        """
        us: list[Any] = [None] * self.plan.places
        for a, bar in zip(self.asked, bars, strict=True):
            if a is not None:
                us[a] = bar
        saved: list[Any] = [None] * len(self.nodes)
        for place, formula, inputs, moving, _, _ in self.plan.tangents:
            if any([us[j] is not None for j in moving]):
                _, node, following = self.nodes[place]
                saved[place] = own = formula.saved(node, following)
                us[place] = formula.forth(own, [None if j is None else us[j] for j in inputs])
        parts = self._bend(us, saved, self.plan.back[inner])
        of_params = _summed([[] if a is None else parts[a] for a in self.asked]) if inner else []
        return of_params, [None if o is None else _sum(parts[o]) for o in self.outer]

    def _bend(self, us: list[Any], saved: list[Any], visits: list[Visit]) -> list[Any]:
        lams: list[Any] = [None] * len(self.nodes)
        parts: list[list[Tensor]] = [[] for _ in range(self.plan.places)]
        for place, formula, inputs, moving, wanted, targets in visits:
            lam, bar = lams[place], self._bars[place]
            bent = bar is not None and any([us[j] is not None for j in moving])
            if lam is None and not bent:
                continue
            own = saved[place]
            if own is None:
                _, node, following = self.nodes[place]
                own = formula.saved(node, following)
            if bent:
                given = [None if j is None else us[j] for j in inputs]
                found = formula.bend(own, lam, cast("Tensor", bar), given, self._kept[place], wanted)
            else:
                found = formula.back(own, cast("Tensor", lam), wanted)
            _hand_on(found, targets, lams, parts)
            lams[place] = saved[place] = us[place] = None
        return parts


def adjoint(
    loss: Tensor, nodes: list[Node], ends: Sequence[Any], params: Sequence[Tensor], outer: Sequence[Tensor]
) -> Adjoint | None:
    """Return what differentiates a loss by formulas; None if these do not cover its whole graph.

    ``nodes`` are all nodes of the graph except the leaves, and ``ends`` those of the leaves. Gradients are wanted of
    those ``params`` that require grad. The pullback also returns the cotangents of the leaves ``outer``.
    """
    # Anomaly mode needs autograd, to name the operator at fault. A tensor subclass may redefine any operator.
    usual = type(loss) is Tensor and loss.dtype in _EXACT and not torch.is_anomaly_enabled()
    if not (nodes and usual) or is_transformed(loss):
        return None
    nodes.sort(key=itemgetter(0))
    if nodes[-1][1] is not loss.grad_fn:
        return None
    place: dict[Any, int | None] = {None: None}
    at: dict[int, int] = {}
    for i, (_, node, _) in enumerate(nodes):
        place[node] = i
    for i, end in enumerate(ends, len(nodes)):
        leaf = end.variable
        # Labels in float64 make the loss of a D in float32 one in float64, and autograd casts gradients on the way.
        if leaf.dtype != loss.dtype:
            return None
        place[end] = at[id(leaf)] = i
    key: list[Any] = []
    for _, node, following in nodes:
        key.append(type(node))
        key += [(place[n], output) for n, output in following]
    asked = [at.get(id(p)) if p.requires_grad else None for p in params]
    reached = [at.get(id(leaf)) for leaf in outer]
    key += ["leaves", *asked, "batch", *reached]
    known = tuple(key)
    plan = _plans.get(known)
    if plan is None:
        plan = planned(nodes, place, asked, reached)
        if plan is None:
            return None
        if len(_plans) >= _MOST:
            _plans.clear()
        _plans[known] = plan
    for i, fits in plan.checks:
        if not fits(*nodes[i][1:]):
            return None
    return Adjoint(plan, nodes, loss, asked, reached)


_EXACT = (torch.float32, torch.float64)


def _hand_on(found: Tensors, targets: Sequence[tuple[int, int]], bars: list[Any], parts: list[list[Tensor]]) -> None:
    """Add what a formula has found to the cotangents ``bars`` of nodes, and to the ``parts`` of those of leaves."""
    for k, j in targets:
        if (one := found[k]) is None:
            continue
        if j >= len(bars):
            parts[j].append(one)
        else:
            bars[j] = one if bars[j] is None else bars[j] + one


def _sum(parts: list[Tensor]) -> Tensor | None:
    return functools.reduce(torch.add, parts) if parts else None


def _summed(parts: Sequence[list[Tensor]]) -> list[Tensor | None]:
    """Return the sum of each list, as views of one vector if none is empty and all have the same dtype and device."""
    given = [p for p in parts if p]
    if len(given) < max(2, len(parts)) or len({(p[0].dtype, p[0].device) for p in given}) > 1:
        return [_sum(p) for p in parts]
    sums = [p[0] for p in given]
    for n in range(1, max(map(len, given))):
        these = [i for i, p in enumerate(given) if n < len(p)]
        # One call adds the n-th part of every sum. Not in place: under allow_mutation_on_saved_tensors(), torch 2.6 has
        # no operator that writes to a list of tensors.
        added = torch._foreach_add([sums[i] for i in these], [given[i][n] for i in these])  # pyright: ignore[reportPrivateImportUsage]
        for i, total in zip(these, added, strict=True):
            sums[i] = total
    return Joined(torch.cat([t.reshape(-1) for t in sums]), tuple(t.shape for t in sums))
