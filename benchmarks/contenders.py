"""Every backward of the package and a graph by hand, and the check that comes before any timing."""

import copy
from collections.abc import Callable

import torch
from libraries import Contender
from nets import Setup
from torch import Tensor, nn
from torch.func import functional_call

from unroll_wrap import Compiled, FiniteDifference, Recompute, Store, Truncate, UnrolledGeneratorLoss

CHAINED = "chained by hand"
EVERY = 5


def wrapped(backward: object = None, **options: object) -> Contender:
    """The package's gradient with a backward, or with other options."""

    def contender(setup: Setup, steps: int) -> Callable[[], Tensor]:
        given = {"backward": backward} | options if backward else options
        unrolled = UnrolledGeneratorLoss(setup.D, setup.optimizer, *setup.problem.objective, steps=steps, **given)
        return lambda: torch.autograd.grad(unrolled(setup.real, setup.fake), setup.fake)[0]

    return contender


def closure(setup: Setup, steps: int) -> Callable[[], Tensor]:
    """The same when the losses capture ``fake`` instead of receiving it."""
    d_loss, g_loss = setup.problem.objective
    unrolled = UnrolledGeneratorLoss(setup.D, setup.optimizer, d_loss, g_loss, steps=steps)
    fake = setup.fake

    def gradient() -> Tensor:
        loss = unrolled(
            setup.real, d_loss=lambda D, real: d_loss(D, real, fake), g_loss=lambda D, real: g_loss(D, real, fake)
        )
        return torch.autograd.grad(loss, fake)[0]

    return gradient


def chained_by_hand(setup: Setup, steps: int) -> Callable[[], Tensor]:
    """K Adam steps as one graph, differentiated once at the end: what one would write for this very net.

    One flat vector of parameters; `functional_call` puts its pieces and a copy of the buffers into D.
    """
    D, group = setup.D, setup.optimizer.param_groups[0]
    d_loss, g_loss = setup.problem.objective
    names = [name for name, _ in D.named_parameters()]
    shapes = [p.shape for p in D.parameters()]
    sizes = [p.numel() for p in D.parameters()]
    beta1, beta2 = group["betas"]
    lr, eps = group["lr"], group["eps"]

    def flat(tensors: list[Tensor]) -> Tensor:
        return torch.cat([t.detach().reshape(-1) for t in tensors])

    def gradient() -> Tensor:
        states = [setup.optimizer.state[p] for p in D.parameters()]
        theta = flat(setup.params()).requires_grad_()
        m, v = flat([s["exp_avg"] for s in states]), flat([s["exp_avg_sq"] for s in states])
        step = int(states[0]["step"])
        buffers = {name: b.clone() for name, b in D.named_buffers()}

        def call(x: Tensor) -> Tensor:
            return functional_call(D, inside, (x,))

        for _ in range(steps):
            pieces = [t.view(s) for t, s in zip(theta.split(sizes), shapes, strict=True)]
            inside = dict(zip(names, pieces, strict=True)) | buffers
            grads = torch.autograd.grad(d_loss(call, setup.real, setup.fake), pieces, create_graph=True)
            g = torch.cat([t.reshape(-1) for t in grads])
            step += 1
            m = torch.lerp(m, g, 1 - beta1)
            v = torch.addcmul(v * beta2, g, g, value=1 - beta2)
            denominator = v.sqrt() / (1 - beta2**step) ** 0.5 + eps
            theta = torch.addcdiv(theta, m, denominator, value=-lr / (1 - beta1**step))
        pieces = [t.view(s) for t, s in zip(theta.split(sizes), shapes, strict=True)]
        inside = dict(zip(names, pieces, strict=True)) | buffers
        return torch.autograd.grad(g_loss(call, setup.real, setup.fake), setup.fake)[0]

    return gradient


def real_steps(setup: Setup, steps: int) -> tuple[nn.Module, Callable[[], None]]:
    """A copy of D, and K steps of its own Adam as any loop takes them: what no unroll by Adam can be cheaper than."""
    D = copy.deepcopy(setup.D)
    optimizer = torch.optim.Adam(D.parameters())
    optimizer.load_state_dict(copy.deepcopy(setup.optimizer.state_dict()))
    real, fake = setup.real, setup.fake.detach()

    def take() -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            setup.problem.objective.d_loss(D, real, fake).backward()
            optimizer.step()

    return D, take


def stop_gradient_by_hand(setup: Setup, steps: int) -> Tensor:
    """The first term of Eq. 12: a copy of D takes K real steps."""
    D, take = real_steps(setup, steps)
    take()
    return torch.autograd.grad(setup.problem.objective.g_loss(D, setup.real, setup.fake), setup.fake)[0]


EXACT: dict[str, Contender] = {
    CHAINED: chained_by_hand,
    "Store": wrapped(Store()),
    "Store, fake in closures": closure,
    "Recompute": wrapped(Recompute()),
    f"Recompute(every={EVERY})": wrapped(Recompute(every=EVERY)),
}
# One object for all K: it compiles a step once.
COMPILED = "Compiled"
FOR_SMALL: dict[str, Contender] = {COMPILED: wrapped(Compiled())}
FIRST_TERM = "stop_gradient=True"
FIRST_TERM_COMPILED = f"{FIRST_TERM}, {COMPILED}"
FIRST_TERM_FOR_SMALL: dict[str, Contender] = {FIRST_TERM_COMPILED: wrapped(Compiled(), stop_gradient=True)}
APPROXIMATE: dict[str, Contender] = {
    "FiniteDifference": wrapped(FiniteDifference()),
    "FiniteDifference(central)": wrapped(FiniteDifference(central=True)),
    "Truncate(1)": wrapped(Truncate(1)),
    FIRST_TERM: wrapped(stop_gradient=True),
}


def errors(
    setup: Setup, steps: int, exact: dict[str, Contender], approximate: dict[str, Contender], tolerance: float
) -> dict[str, float]:
    """The largest error of each contender's gradient, relative to the largest entry of the chained graph's.

    Args:
        setup: the problem.
        steps: K.
        exact: those that must agree, the chained graph among them.
        approximate: those that need not, the first term among them.
        tolerance: how well; also for the first term, against a copy of D that takes real steps.

    Raises:
        SystemExit: one does not agree, or the second term is too small for agreement to mean anything.
    """
    found = {name: make(setup, steps)() for name, make in (exact | approximate).items()}
    right, first_term = found[CHAINED], stop_gradient_by_hand(setup, steps)
    scale = right.abs().max()

    def error(one: Tensor, other: Tensor) -> float:
        return float((one - other).abs().max() / scale)

    table = {name: error(g, right) for name, g in found.items()}
    must = {name: table[name] for name in exact}
    must |= {name: error(g, first_term) for name, g in found.items() if name.startswith(FIRST_TERM)}
    wrong = {name: e for name, e in must.items() if not e <= tolerance}
    if wrong:
        raise SystemExit(f"{setup.problem.title}: gradients differ by {wrong}, over {tolerance}. Nothing was timed.")
    if table[FIRST_TERM] < 1e-3:
        raise SystemExit(f"{setup.problem.title}: the second term is {table[FIRST_TERM]:.1e}; that checks nothing.")
    return table
