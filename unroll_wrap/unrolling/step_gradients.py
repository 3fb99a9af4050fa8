"""The gradients of ``d_loss`` that the optimizer steps by, and their pullback, both by autograd."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ..evaluation.evaluate import Evaluator
from ..evaluation.evaluation import Evaluation
from ..evaluation.gradients import NO_SECOND_DERIVATIVE, causes, differentiate
from ..evaluation.precision import length
from ..operators.adjoint import Adjoint
from ..operators.convolution import parameters_only
from ..operators.repairs import repair
from ..optimizers.block import Joined
from ..optimizers.derivative import check_derivative
from .one_process import Grads
from .step import Point


def gradients(
    evaluate: Evaluator,
    evaluation: Evaluation,
    also: Sequence[Tensor] = (),
    by: Adjoint | None = None,
    mine: frozenset[int] | None = None,
    **options: Any,
) -> tuple[Grads, list[Tensor | None]]:
    """Return what the optimizer would find in ``.grad`` of each parameter, and the gradients of the leaves ``also``.

    Args:
        evaluate: the evaluator that has run the loss.
        evaluation: the result of that run.
        also: other leaves.
        by: computes the gradients by formulas; None if autograd computes them.
        mine: positions of the parameters to compute gradients of; None for all.
        options: keyword arguments of ``torch.autograd.grad``.

    Raises:
        ValueError: the optimizer could not step by these gradients.
        RuntimeError: they have to be differentiated, and the loss has no second derivative.
    """
    name, loss = evaluation.name, evaluation.loss
    refuse_stale(evaluation, evaluation.alone)
    if options.get("create_graph") and evaluation.once:
        raise RuntimeError(f"Differentiating {name}: {NO_SECOND_DERIVATIVE}. It is {evaluation.once[0]}.")
    params = evaluate.swap.handles(evaluation.params)
    if not loss.requires_grad:
        raise ValueError(
            f"{name} depends on no parameter. Compute it from {evaluate.who}'s output, without detach or no_grad."
        )
    if by is not None:
        with causes(name):
            return _checked(evaluate, name, params, by.gradients()), []
    # A loss may freeze layers itself, and then the optimizer finds no gradient for their parameters.
    moving = [i for i, p in enumerate(params) if p.requires_grad and (mine is None or i in mine)]
    # The operators recognise parameters by their class, which the leaves of a tracer do not have.
    skip = not also and evaluate.leaf is None
    hooks = [*evaluation.hooks, *(repair(evaluation.fragile) if options.get("create_graph") else [])]
    attached = evaluate.swap.attached() if evaluation.hooks else set[int]()
    with parameters_only() if skip else nullcontext():
        asked = [*(params[i] for i in moving), *also]
        found = differentiate(name, [loss], asked, factor=evaluate.autocast.first, **options)
    if evaluation.hooks and not evaluate.swap.attached() <= attached:
        raise ValueError(
            f"A hook on the graph of {name} keeps a gradient in {evaluate.who}, and no derivative would pass through "
            "that to what later steps make of it. Compute it in the loss with torch.autograd.grad, or keep it detached "
            "(grad.detach()) if that path is to be cut, or if it is a log."
        )
    # The hooks are meant for this pass alone, and the pass that differentiates it may reach the same nodes.
    for hook in hooks:
        hook.remove()
    grads: list[Tensor | None] = [None] * len(params)
    for i, g in zip(moving, found, strict=False):
        grads[i] = g
    return _checked(evaluate, name, params, grads, mine), found[len(moving) :]


def refuse_stale(evaluation: Evaluation, wrong: bool) -> None:
    """Raise ValueError if it is ``wrong`` that a loss captures what a player has computed before its steps."""
    if wrong:
        raise ValueError(
            f"{evaluation.name} captures a tensor whose graph leads to parameters that the steps move, as D(real) "
            "computed before the call has: it is of these parameters before their steps. Compute it in the loss, or "
            "detach it."
        )


def _checked(
    evaluate: Evaluator, name: str, params: Sequence[Tensor], grads: Grads, mine: frozenset[int] | None = None
) -> Grads:
    """Return the gradients with the parameters' hooks applied, and with zeros where the loop leaves zeros."""
    if isinstance(grads, Joined):
        return grads
    present = [g for g in grads if g is not None]
    if not present:
        raise ValueError(
            f"{name} reaches none of the {len(grads)} parameters that the optimizer moves. Pass the module that "
            "the loss uses, and the optimizer that steps it; and let the loss call it itself, not return what was "
            "computed before."
        )
    if any([g.is_sparse for g in present]):
        raise ValueError(
            f"{name} has a sparse gradient, of an nn.Embedding(sparse=True) as it seems, which cannot be "
            "differentiated again. Leave sparse=True out."
        )
    # The optimizer sees the gradient that the hooks on the live parameter return.
    marks = evaluate.swap.marks() if evaluate.hooks else []
    for i, hook in evaluate.hooks:
        if (g := grads[i]) is not None:
            grads[i] = _hooked(evaluate, hook, g)
    if evaluate.hooks and marks != evaluate.swap.marks():
        raise ValueError(
            f"A gradient hook on a parameter of {evaluate.who} changes a tensor that it or its parameters keep: later "
            "steps depend on that, and no derivative would pass through it. Keep momentum and the like in the state of "
            "the optimizer, or leave what is a log out where unroll_wrap.is_unrolling()."
        )
    if len(present) < len(grads):
        for i in evaluate.zeroed if mine is None else mine.intersection(evaluate.zeroed):
            grads[i] = torch.zeros_like(params[i]) if grads[i] is None else grads[i]
    return grads


def _hooked(evaluate: Evaluator, hook: Callable[[Tensor], Any], grad: Tensor) -> Tensor:
    """Return what a hook on a parameter makes of its gradient."""

    def run(given: list[Tensor]) -> list[Tensor]:
        changed = hook(given[0])
        return [given[0] if changed is None else changed]

    if evaluate.written:
        check_derivative(f"A gradient hook on a parameter of {evaluate.who}", run, [grad], [hook])
    return run([grad])[0]


def pull(
    unroll: Any, evaluation: Evaluation, start: Point, grads: Grads, bars: Sequence[Tensor | None], first: bool
) -> Grads:
    """Return (∂g/∂θ)ᵀḡ for every parameter, and add (∂g/∂x)ᵀḡ for the user's tensors to the sensitivity.

    ``evaluation`` is the run of the loss, from the point ``start``, whose gradients ``grads``, with their graph, are g;
    ``bars`` is ḡ. For the ``first`` step the part of the parameters is not needed, and then is empty.
    """
    pairs = [
        (g, bar) for g, bar in zip(grads, bars, strict=True) if g is not None and bar is not None and g.requires_grad
    ]
    # A checkpoint that recomputes a part of D's forward pass must find this step's tensors in D.
    unroll.evaluate.put(evaluation.params, start.buffers, start.contents)
    params = [] if first else unroll.evaluate.swap.handles(evaluation.params)
    inner = [p for p in params if p.requires_grad]
    found = differentiate(
        evaluation.name,
        [g for g, _ in pairs],
        [*inner, *evaluation.outer],
        [bar for _, bar in pairs],
        factor=unroll.evaluate.autocast.second,
        retain_graph=evaluation.captured or bool(evaluation.outside),
    )
    if first and unroll.fresh:
        rest = length(g for _, g in unroll.sensitivity.pairs())
        unroll.outsized = length(found[len(inner) :]) / rest if rest else 0.0
    reached = unroll.sensitivity.add(evaluation.users, found[len(inner) :])
    unroll.sensitivity.second_term |= reached or evaluation.captured
    if evaluation.captured and pairs:
        where = pairs[0][0].device
        surrogate = torch.stack([(g * bar).sum().to(where) for g, bar in pairs]).sum()
        unroll.sensitivity.through(surrogate, evaluation)
        unroll.sensitivity.edge += unroll.evaluate.edge(evaluation)
    of_params = iter(found)
    return [next(of_params) if p.requires_grad else None for p in params]
