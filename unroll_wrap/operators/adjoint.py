"""The gradient of a loss by formulas, without a graph of its own, and its derivative by two more passes.

With g = ∂loss/∂θ and a cotangent ḡ, the derivative of ⟨g, ḡ⟩ by θ and by the batch is that of the gradient along ḡ:
tangents of θ go forth through the loss's own graph, and what they bend comes back. Autograd builds the graph of the
gradient instead, and walks through it: twice as many calls of operators, and Python's time for each of its nodes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from .formulas_of_layers import LAYERS
from ..optimizers.block import Joined
from .formulas import FORMULAS, Formula, one_like, plus


class _Entry(NamedTuple):
    """A node of the graph; ``inputs`` are the places of what it was given, None for a constant."""

    formula: Formula
    node: Any
    inputs: tuple[int | None, ...]
    shapes: tuple[Any, ...]
    out: Any

    def saved(self) -> Any:
        return self.formula.saved(self.node, self.shapes, self.out)


class Adjoint:
    """A loss with a graph that the formulas know.

    Places are numbers: those of nodes, in the order in which the loss has made them, and after these the leaves.
    """

    def __init__(self, entries: list[_Entry], leaves: list[Any], loss: Tensor, outer: Sequence[Tensor]) -> None:
        self._entries = entries
        self._leaves = leaves
        self._loss = loss
        self._place = {id(node.variable): len(entries) + i for i, node in enumerate(leaves)}
        self._outer = [self._place.get(id(leaf)) for leaf in outer]
        self._bars: list[Tensor | None] = []
        self._found: list[Any] = []
        self._asked: list[int | None] = []

    def gradients(self, params: Sequence[Tensor]) -> list[Tensor | None]:
        """For each parameter its gradient, None where it is not reached; bit for bit as autograd has it."""
        self._asked = [self._place.get(id(p)) if p.requires_grad else None for p in params]
        wanted = self._leading({a for a in self._asked if a is not None})
        bars: list[Any] = [None] * len(wanted)
        bars[len(self._entries) - 1] = one_like(self._loss).expand_as(self._loss)
        self._found = [()] * len(self._entries)
        parts: dict[int, list[Tensor]] = {}
        for i in range(len(self._entries) - 1, -1, -1):
            entry, bar = self._entries[i], bars[i]
            if bar is None or not wanted[i]:
                bars[i] = None
                continue
            of = [j is not None and wanted[j] for j in entry.inputs]
            found = entry.formula.back(entry.saved(), bar, of)
            self._pass(entry, of, found, bars, parts)
            if entry.formula.curved:
                self._found[i] = found
            else:
                bars[i] = None
        self._bars, self._moving = bars[: len(self._entries)], wanted
        return _summed([parts.get(-1 if a is None else a) for a in self._asked])

    def pullback(self, bars: Sequence[Tensor | None], inner: bool) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """From the cotangent of each gradient to that of each parameter, if ``inner``, and of the outer leaves."""
        total = len(self._entries) + len(self._leaves)
        us: list[Any] = [None] * total
        for a, bar in zip(self._asked, bars, strict=True):
            if a is not None:
                us[a] = bar
        saved: list[Any] = [None] * len(self._entries)
        useful = self._bending()
        for i, entry in enumerate(self._entries):
            if self._moving[i]:
                given = [None if j is None else us[j] for j in entry.inputs]
                if useful[i] and any(u is not None for u in given):
                    saved[i] = entry.saved()
                    us[i] = entry.formula.forth(saved[i], given)
        targets = {a for a in self._asked if a is not None} if inner else set[int]()
        return self._back(us, saved, targets)

    def _back(
        self, us: list[Any], saved: list[Any], targets: set[int]
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        wanted = self._leading(targets.union(o for o in self._outer if o is not None))
        lams: list[Any] = [None] * len(wanted)
        parts: dict[int, list[Tensor]] = {}
        for i in range(len(self._entries) - 1, -1, -1):
            entry, lam, bar = self._entries[i], lams[i], self._bars[i]
            lams[i] = None
            if not wanted[i]:
                continue
            of = [j is not None and wanted[j] for j in entry.inputs]
            given = [None if j is None else us[j] for j in entry.inputs]
            bent = bar is not None and any(u is not None for u in given)
            if lam is None and not bent:
                continue
            own = entry.saved() if saved[i] is None else saved[i]
            if bent:
                found = entry.formula.bend(own, lam, bar, given, self._found[i], of)
            else:
                found = entry.formula.back(own, lam, of)
            self._pass(entry, of, found, lams, parts)
            saved[i] = us[i] = None
        inner = [parts.get(-1 if a is None else a) for a in self._asked] if targets else []
        return _summed(inner), [_sum(parts.get(-1 if o is None else o)) for o in self._outer]

    def _pass(
        self, entry: _Entry, of: Sequence[bool], found: Sequence[Any], to: list[Any], parts: dict[int, list[Tensor]]
    ) -> None:
        """Add to what has come to each input so far."""
        for j, yes, bar in zip(entry.inputs, of, found, strict=False):
            if j is None or not yes or bar is None:
                continue
            if j < len(self._entries):
                to[j] = plus(to[j], bar)
            else:
                parts.setdefault(j, []).append(bar)

    def _leading(self, leaves: set[int]) -> list[bool]:
        """Of each place, whether it leads to one of these leaves."""
        found = [False] * len(self._entries) + [len(self._entries) + i in leaves for i in range(len(self._leaves))]
        for i, entry in enumerate(self._entries):
            found[i] = any(j is not None and found[j] for j in entry.inputs)
        return found

    def _bending(self) -> list[bool]:
        """Of each node, whether the tangent of its result meets anything that it bends."""
        found = [False] * (len(self._entries) + len(self._leaves))
        for i in range(len(self._entries) - 1, -1, -1):
            entry = self._entries[i]
            if entry.formula.curved or found[i]:
                for j in entry.inputs:
                    if j is not None:
                        found[j] = True
        return found[: len(self._entries)]


def adjoint(loss: Tensor, nodes: Sequence[Any], leaves: Sequence[Any], outer: Sequence[Tensor]) -> Adjoint | None:
    """None if there is a node in the graph that no formula is known for.

    Args:
        loss: with its graph.
        nodes: all of that graph, but for the leaves.
        leaves: the nodes of these.
        outer: leaves of the batch, which the pullback is to reach too.
    """
    if loss.dtype not in (torch.float32, torch.float64) or torch.is_anomaly_enabled():
        return None
    order = sorted(nodes, key=lambda node: node._sequence_nr())
    if not order or loss.grad_fn is not order[-1]:
        return None
    place = {node: i for i, node in enumerate([*order, *leaves])}
    entries: list[_Entry] = []
    for node in order:
        kind: Any = type(node)
        own = issubclass(kind, BackwardCFunction)
        formula = LAYERS.get(node._forward_cls) if own else FORMULAS.get(kind.__name__)
        out = _shape(node)
        if formula is None or any(nr for _, nr in node.next_functions):
            return None
        inputs = tuple(None if n is None else place[n] for n, _ in node.next_functions)
        shapes = tuple(None if n is None else _shape(n) for n, _ in node.next_functions)
        if any(j is not None and len(entries) <= j < len(order) for j in inputs) or not formula.fits(node, shapes, out):
            return None
        entries.append(_Entry(formula, node, inputs, shapes, out))
    return Adjoint(entries, list(leaves), loss, outer)


def _sum(parts: list[Tensor] | None) -> Tensor | None:
    if parts is None:
        return None
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _summed(parts: Sequence[list[Tensor] | None]) -> list[Tensor | None]:
    """The sum of the parts of each; as one flat vector if all are of a kind."""
    some = next((p[0] for p in parts if p is not None), None)
    if len(parts) < 2 or any(p is None or p[0].dtype != some.dtype or p[0].device != some.device for p in parts):
        return [_sum(p) for p in parts]
    given: list[list[Tensor]] = [p for p in parts if p is not None]
    flat = torch.cat([p[0].reshape(-1) for p in given])
    found = Joined(flat, [p[0].shape for p in given])
    for n in range(1, max(map(len, given))):
        these = [i for i, p in enumerate(given) if n < len(p)]
        torch._foreach_add_([found[i] for i in these], [given[i][n] for i in these])
    return found


def _shape(node: Any) -> torch.Size:
    return torch.Size(node._input_metadata[0].shape)
