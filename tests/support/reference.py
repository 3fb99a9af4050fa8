"""What an unrolled loss is, said with real optimizers and finite differences. Never imports the package.

`value` takes K real steps with deep copies of the discriminator and of the optimizer. `central_difference` is the
derivative of any such value. `first_term` is the gradient without the second term of Eq. 12: the control that every
exact gradient has to differ from. `chained` is a second, unrelated road to the gradient (one long graph), which
`test_oracle.py` holds against the differences.
"""

import copy
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn


def discriminators(discriminator) -> list[nn.Module]:
    """One module, or those of a list, tuple or dict, in order."""
    if isinstance(discriminator, nn.Module):
        return [discriminator]
    return list(discriminator.values() if isinstance(discriminator, dict) else discriminator)


class Copies(NamedTuple):
    """Deep copies that share no tensor with the live objects; `memo` maps id(live) to its copy."""

    discriminator: Any
    optimizers: list
    memo: dict

    def params(self):
        return [p for optimizer in self.optimizers for group in optimizer.param_groups for p in group["params"]]


def copies(discriminator, optimizer, frozen=()) -> Copies:
    """Copy D and its optimizers together, so that the copied state belongs to the copied parameters."""
    memo = {}
    for root in discriminators(discriminator):
        for module in root.modules():
            for attribute in vars(module).values():
                # Legacy norms leave a tensor with a graph behind, which deepcopy refuses.
                if isinstance(attribute, torch.Tensor) and not attribute.is_leaf:
                    memo[id(attribute)] = attribute.detach().clone()
    twin = copy.deepcopy(discriminator, memo)
    if callable(optimizer) and not isinstance(optimizer, torch.optim.Optimizer):
        optimizers = [optimizer([p for root in discriminators(twin) for p in root.parameters()])]
    else:
        given = optimizer if isinstance(optimizer, (list, tuple)) else [optimizer]
        optimizers = [twin_optimizer(one, memo) for one in given]
    result = Copies(twin, optimizers, memo)
    kept = {id(memo[id(p)]) for p in frozen}
    for p in result.params():
        p.requires_grad_(id(p) not in kept)
    return result


def twin_optimizer(optimizer, memo):
    """A deep copy with what the optimizer's author keeps on the instance, which torch's own copying leaves out."""
    if hasattr(optimizer, "_optimizer_step_pre_hooks"):
        twin = copy.deepcopy(optimizer, memo)
    else:
        # torch_optimizer.Lookahead leaves Optimizer.__init__ out. Torch's copying would patch its class, once for all,
        # in a way that fails for every live instance.
        twin = memo[id(optimizer)] = object.__new__(type(optimizer))
    for name, held in vars(optimizer).items():
        if name not in vars(twin) and name != "step":  # a scheduler wraps `step` on the live instance
            inner = isinstance(held, torch.optim.Optimizer)
            setattr(twin, name, twin_optimizer(held, memo) if inner else copy.deepcopy(held, memo))
    return twin


def detached(batch):
    """Fresh tensors without a graph, in the same nesting."""
    if isinstance(batch, torch.Tensor):
        return batch.detach().clone()
    if isinstance(batch, dict):
        return {key: detached(one) for key, one in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(detached(one) for one in batch)
    return batch


def real_step(twins, d_loss, batch, kwargs, after_backward=None, after_step=None):
    """Zero, backward, step: what every training loop does, on the copies."""
    for optimizer in twins.optimizers:
        optimizer.zero_grad()
    for p in twins.params():
        p.grad = None
    d_loss(twins.discriminator, *detached(batch), **detached(kwargs)).backward()
    if after_backward is not None:
        after_backward(twins.params())
    for optimizer in twins.optimizers:
        optimizer.step()
    if after_step is not None:
        after_step(twins.params())


def value(
    discriminator,
    optimizer,
    d_loss,
    g_loss,
    batch,
    steps,
    *,
    resample=None,
    average=False,
    kwargs=None,
    frozen=(),
    after_backward=None,
    after_step=None,
) -> torch.Tensor:
    """K real steps of the real optimizer on copies, then g_loss. Moves neither live objects nor random numbers."""
    kwargs = kwargs or {}
    with torch.random.fork_rng(devices=[]):
        twins = copies(discriminator, optimizer, frozen)
        losses = []
        for k in range(steps):
            inner = batch if resample is None else resample[k]
            real_step(twins, d_loss, inner, kwargs, after_backward, after_step)
            if average:
                losses.append(g_loss(twins.discriminator, *detached(batch), **detached(kwargs)).detach())
        if losses:
            return torch.stack(losses).mean()
        return g_loss(twins.discriminator, *detached(batch), **detached(kwargs)).detach()


def first_term(
    discriminator,
    optimizer,
    d_loss,
    g_loss,
    batch,
    steps,
    inputs,
    *,
    resample=None,
    kwargs=None,
    frozen=(),
    after_backward=None,
    after_step=None,
) -> list[torch.Tensor]:
    """The gradient of g_loss at theta^K held fixed. `batch` keeps its graph into `inputs`."""
    kwargs = kwargs or {}
    with torch.random.fork_rng(devices=[]):
        twins = copies(discriminator, optimizer, frozen)
        for k in range(steps):
            inner = batch if resample is None else resample[k]
            real_step(twins, d_loss, inner, kwargs, after_backward, after_step)
        loss = g_loss(twins.discriminator, *batch, **kwargs)
    # A parameter that G and D share is reached twice: as it is, and as the discriminator's copy of it.
    copied = [one for one in inputs if id(one) in twins.memo]
    through_copies = iter(filled(loss, [twins.memo[id(one)] for one in copied]) if copied else [])
    return [
        g + next(through_copies) if id(one) in twins.memo else g
        for one, g in zip(inputs, filled(loss, inputs), strict=True)
    ]


def filled(loss, inputs) -> list[torch.Tensor]:
    """The gradient of `loss`, zero where an input is not used; the graph stays."""
    grads = torch.autograd.grad(loss, inputs, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, grads, strict=True)]


@contextmanager
def in_place(modules, optimizers, d_loss, steps):
    """K real steps of the live objects on `d_loss()`; on leaving, everything is loaded back.

    For loops whose losses reach D by ways of their own, which no copy can follow.
    """
    params = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    modules = [one for root in modules for one in root.modules()]
    buffers = [(b, b.detach().clone()) for one in modules for b in one._buffers.values() if b is not None]
    flags = [(p, p.requires_grad, p.grad, p.detach().clone()) for p in params]
    states = [copy.deepcopy(optimizer.state_dict()) for optimizer in optimizers]
    random_state = torch.get_rng_state()
    try:
        for _ in range(steps):
            for p in params:
                p.requires_grad_(True)
            grads = torch.autograd.grad(d_loss(), params, allow_unused=True, retain_graph=True)
            for p, g in zip(params, grads, strict=True):
                p.grad = g
            for optimizer in optimizers:
                optimizer.step()
        yield
    finally:
        with torch.no_grad():
            for p, flag, grad, value in flags:
                p.copy_(value)
                p.requires_grad_(flag)
                p.grad = grad
            for b, value in buffers:
                b.copy_(value)
        for optimizer, state in zip(optimizers, states, strict=True):
            optimizer.load_state_dict(state)
        torch.set_rng_state(random_state)


class Difference(NamedTuple):
    """A derivative, and the bound on its error that the table of step sizes gives."""

    slope: float
    error: float


def central_difference(function, tensors, direction, *, first=0.008, shrink=2.0, rows=4) -> Difference:
    """d/dh of function() along `direction`, by Ridders' table: halve the step, extrapolate, keep the best entry.

    The best entry is the one that changes least from its two neighbours, and that change is the error bound. So a
    kink or a rounding floor shows as a large `error` instead of as a wrong slope. Starts every evaluation from the
    same random state, and puts the storage of `tensors` back, so that graphs made before stay valid.
    """
    saved = [t.data for t in tensors]
    state = torch.get_rng_state()

    def shifted(h):
        torch.set_rng_state(state)
        for t, s, d in zip(tensors, saved, direction, strict=True):
            t.data = s + h * d
        return float(function())

    best = Difference(float("nan"), float("inf"))
    previous = []
    try:
        for i in range(rows):
            h = first / shrink**i
            row = [(shifted(h) - shifted(-h)) / (2 * h)]
            for j, above in enumerate(previous):
                factor = shrink ** (2 * (j + 1))
                row.append((factor * row[j] - above) / (factor - 1))
                error = max(abs(row[-1] - row[-2]), abs(row[-1] - above))
                if error < best.error:
                    best = Difference(row[-1], error)
            previous = row
    finally:
        for t, s in zip(tensors, saved, strict=True):
            t.data = s
        torch.set_rng_state(state)
    return best


def directions(tensors, count, seed=1) -> list[list[torch.Tensor]]:
    """Random directions of unit length over all `tensors` together."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for _ in range(count):
        raw = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in tensors]
        length = torch.sqrt(sum((r**2).sum() for r in raw))
        result.append([r / length for r in raw])
    return result


def axes(tensors) -> list[list[torch.Tensor]]:
    """One direction per coordinate: for the whole gradient of a tiny generator."""
    result = []
    for i, t in enumerate(tensors):
        for j in range(t.numel()):
            one = [torch.zeros_like(s) for s in tensors]
            one[i].view(-1)[j] = 1.0
            result.append(one)
    return result


def along(gradient, direction) -> float:
    """The slope that a gradient claims along a direction."""
    return float(sum((g * d).sum() for g, d in zip(gradient, direction, strict=True)))


def gap(one, other) -> float:
    """The distance between two gradients, relative to the second."""
    top = torch.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(one, other, strict=True)))
    return float(top / torch.sqrt(sum((b**2).sum() for b in other)))


def sgd_rule(group, state, g):
    """Plain SGD; momentum and the rest are left to the differences."""
    return -group["lr"] * g, {}


def adam_rule(group, state, g):
    """Adam as in the paper, from a live state, with the naive square root."""
    (b1, b2), step = group["betas"], float(state["step"]) + 1
    m, v = b1 * state["exp_avg"] + (1 - b1) * g, b2 * state["exp_avg_sq"] + (1 - b2) * g**2
    update = -group["lr"] * (m / (1 - b1**step)) / ((v / (1 - b2**step)).sqrt() + group["eps"])
    return update, {"step": step, "exp_avg": m, "exp_avg_sq": v}


def chained(discriminator, optimizer, d_loss, g_loss, batch, steps) -> torch.Tensor:
    """One long graph through K steps, theta^k attached all the way; shares nothing with `value` but the copies.

    For one module and one plain Adam or SGD, and losses without R1 on a reused batch. It cuts what the user's own
    `detach` or `no_grad` cuts (the power iteration of a spectral norm, BatchNorm's running statistics), which a
    difference of `value` still sees: so it is the oracle there.
    """
    with torch.random.fork_rng(devices=[]):
        twins = copies(discriminator, optimizer)
        (twin_optimizer,) = twins.optimizers
        rule = {torch.optim.SGD: sgd_rule, torch.optim.Adam: adam_rule}[type(twin_optimizer)]
        groups = {id(p): group for group in twin_optimizer.param_groups for p in group["params"]}
        names = {name: p for name, p in twins.discriminator.named_parameters() if id(p) in groups}
        params = dict(names)
        states = {name: twin_optimizer.state[p] for name, p in names.items()}
        bound = Bound(twins.discriminator)
        for _ in range(steps):
            bound.params = params
            grads = torch.autograd.grad(d_loss(bound, *batch), list(params.values()), create_graph=True)
            params = dict(params)
            for (name, p), g in zip(names.items(), grads, strict=True):
                update, states[name] = rule(groups[id(p)], states[name], g)
                params[name] = params[name] + update
        bound.params = params
        return g_loss(bound, *batch)


class Bound:
    """The copy of D, called with other parameters; its buffers move in place.

    Parameters that nothing trains may be rewritten through `.data`, which changes what the graph has saved of them:
    each call gets them anew.
    """

    def __init__(self, module):
        self.module, self.params = module, {}
        self.rewritten = {name: p for name, p in module.named_parameters() if not p.requires_grad}

    def __call__(self, *args):
        self.rewritten = {
            name: nn.Parameter(p.detach().clone(), requires_grad=False) for name, p in self.rewritten.items()
        }
        return torch.func.functional_call(self.module, {**self.rewritten, **self.params}, args)
