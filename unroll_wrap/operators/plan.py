"""Plan the passes through a graph once for all graphs of the same structure, of which an unroll has many."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch.autograd.function import BackwardCFunction

from .formulas import Formula
from .formulas_of_layers import LAYERS
from .formulas_of_operators import FORMULAS

# A node of a graph: its sequence number, which grows with time, the node itself, and its ``next_functions``.
Node = tuple[int, Any, Any]


class Visit(NamedTuple):
    """What a pass does at one node."""

    place: int  # The place of the node.
    formula: Formula  # The formula of its operator.
    inputs: tuple[int | None, ...]  # The places of the operator's inputs; None for a constant.
    # The places of the inputs that depend on a parameter; in a reverse pass, only if the formula is curved.
    moving: tuple[int, ...]
    wanted: tuple[bool, ...]  # For each input, whether a reverse pass needs its cotangent.
    targets: tuple[tuple[int, int], ...]  # The positions of these inputs among all of them, each with its place.


class Plan(NamedTuple):
    """The passes through every graph of one structure."""

    places: int  # The number of nodes and leaves.
    # The places whose formula does not hold for every node, each with the test that the node has to pass.
    checks: list[tuple[int, Any]]
    gradient: list[Visit]  # The reverse pass that computes the gradient.
    tangents: list[Visit]  # The forward pass of the tangents of θ.
    # The reverse passes of the pullback: to the batch alone, and to θ and the batch.
    back: tuple[list[Visit], list[Visit]]


def planned(
    nodes: list[Node], place: dict[Any, int | None], asked: list[int | None], outer: list[int | None]
) -> Plan | None:
    """Return the passes through a graph; None if the formulas do not cover it. ``Adjoint`` describes the arguments."""
    formulas = [_formula(node) for _, node, _ in nodes]
    known = [f for f in formulas if f is not None]
    edges = [(i, place[n], output) for i, (_, _, following) in enumerate(nodes) for n, output in following]
    # The formulas know first outputs only. A node that another thread made may be out of order.
    odd = [i for i, j, output in edges if output or (j is not None and i <= j < len(nodes))]
    if odd or len(known) < len(formulas):
        return None
    inputs = [tuple(None if n is None else place[n] for n, _ in following) for _, _, following in nodes]
    visits = list(zip(range(len(nodes)), known, inputs, strict=True))

    def leading(leaves: Sequence[int | None]) -> set[int]:
        """Return the places from which any of these leaves is reached, and the leaves themselves."""
        found = {leaf for leaf in leaves if leaf is not None}
        for i, _, given in visits:
            if not found.isdisjoint(given):
                found.add(i)
        return found

    moving = leading(asked)

    def movers(formula: Formula, given: Sequence[int | None]) -> tuple[int, ...]:
        return tuple(j for j in given if j is not None and j in moving and formula.curved)

    def backwards(to: set[int]) -> list[Visit]:
        found: list[Visit] = []
        for i, formula, given in reversed(visits):
            if i in to:
                wanted = tuple(j in to for j in given)
                targets = tuple((k, j) for k, j in enumerate(given) if j is not None and j in to)
                found.append(Visit(i, formula, given, movers(formula, given), wanted, targets))
        return found

    # A tangent is needed only if it reaches a curved operator.
    useful: set[int | None] = set()
    for i, formula, given in reversed(visits):
        if formula.curved or i in useful:
            useful.update(given)
    tangents = [
        Visit(i, f, given, tuple(j for j in given if j is not None and j in moving), (), ())
        for i, f, given in visits
        if i in moving and i in useful
    ]
    checks = [(i, f.fits) for i, f, _ in visits if f.fits is not None]
    back = backwards(leading(outer)), backwards(leading([*asked, *outer]))
    # One of the keys of ``place`` is None, which stands for a constant.
    return Plan(len(place) - 1, checks, backwards(moving), tangents, back)


def _formula(node: Any) -> Formula | None:
    kind = type(node)
    # A function of the user's may have a node of any name.
    return LAYERS.get(node._forward_cls) if issubclass(kind, BackwardCFunction) else FORMULAS.get(kind.__name__)
