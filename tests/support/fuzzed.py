"""Random users: architecture, optimizer, objective and every option of a call, drawn by hypothesis."""

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from optimizers import OPTIMIZERS
from problems import World, small_generator, softplus
from torch import nn

from unroll_wrap import FiniteDifference, Recompute, Store, Truncate, UnrolledGeneratorLoss

WIDTH, ROWS, DRAWS = 4, 4, 12

LAYERS = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "silu in place": lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(inplace=True)),
    "batchnorm": lambda: nn.BatchNorm1d(WIDTH),
    "batchnorm without statistics": lambda: nn.BatchNorm1d(WIDTH, affine=False, track_running_stats=False),
    "batchnorm in eval": lambda: Still(nn.BatchNorm1d(WIDTH)),
    "layernorm": lambda: nn.LayerNorm(WIDTH),
    "groupnorm": lambda: nn.GroupNorm(2, WIDTH),
    "dropout": lambda: nn.Dropout(0.3),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)),
    "spectral norm in eval": lambda: Still(nn.utils.parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH))),
    "convolution": lambda: nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 1, 3, padding=1), nn.Flatten()),
    "gru": lambda: Recurrent(nn.GRU(1, 2, batch_first=True)),
    "residual": lambda: Residual(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())),
}


class Still(nn.Sequential):
    """In eval mode whatever D's is: buffers are read, and not moved."""

    def train(self, mode=True):
        return super().train(False)


class Recurrent(nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn, self.out = rnn, nn.Linear(2, WIDTH)

    def forward(self, x):
        return self.out(self.rnn(x.unsqueeze(-1))[0][:, -1])


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


class Tagged(nn.Parameter):
    """A parameter of its own class, whose attributes a deep copy keeps."""

    def __deepcopy__(self, memo):
        made = memo[id(self)] = type(self)(self.detach().clone(), self.requires_grad)
        vars(made).update(vars(self))
        return made


class Hooked(nn.Parameter):
    """A parameter with a gradient hook, which a deep copy has too."""

    @classmethod
    def of(cls, tensor):
        made = cls(tensor.detach().clone())
        made.register_hook(lambda g: 1.5 * g)
        return made

    def __deepcopy__(self, memo):
        made = memo[id(self)] = self.of(self)
        return made


class Counter:
    """An object of the user's own, which a forward pass changes."""

    def __init__(self):
        self.n, self.seen = 0, {"last": [0.0]}

    def __call__(self):
        self.n += 1
        self.seen["last"].append(0.1 * (self.n % 5))
        return 1 + self.seen["last"].pop()


def clipping(step):
    """A step that does more than the one inside, and counts on the optimizer itself."""

    def clipped(self, closure=None):
        self._times = getattr(self, "_times", 0) + 1
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.mul_(1 / (1 + 0.1 * self._times))
        return step(self)

    return clipped


# What objects carry of their own.
CARRIED = ["attribute", "class", "object", "frozen part", "hook in the loss", "hook of a parameter", "step of its own"]


class Net(nn.Module):
    """Points or labelled points to logits, with a head that nothing uses."""

    def __init__(self, layers, conditional, carries=()):
        super().__init__()
        self.kept = Counter() if "object" in carries else None
        self.body = nn.Sequential(nn.Linear(2, WIDTH), *(LAYERS[one]() for one in layers), nn.Linear(WIDTH, 1))
        self.embed = nn.Embedding(3, 2) if conditional else None
        self.unused = nn.Linear(2, 1)
        self.frozen = nn.Parameter(torch.full((2,), 1.25), requires_grad=False) if "frozen part" in carries else None
        if {"attribute", "class"} & set(carries):
            self.body[0].weight = Tagged(self.body[0].weight.detach())
        if "attribute" in carries:
            self.body[0].weight.gain = 0.5
        if "hook of a parameter" in carries:
            self.body[0].bias = Hooked.of(self.body[0].bias)

    def forward(self, x, labels=None):
        x = x if self.frozen is None else x * self.frozen
        weight = self.body[0].weight
        x = x * getattr(weight, "gain", 1.0) + (0.25 if isinstance(weight, Tagged) else 0)
        out = self.body(x if self.embed is None else x * (1 + self.embed(labels)))
        return out if self.kept is None else out * self.kept()


def penalty(D, x, labels):
    (slope,) = torch.autograd.grad(D(x, **labels).sum(), x, create_graph=True)
    return slope.pow(2).sum(1)


def cross_entropy(D, real, fake, **labels):
    return softplus(-D(real, **labels)).mean() + softplus(D(fake, **labels)).mean()


def with_r1(D, real, fake, **labels):
    return cross_entropy(D, real, fake, **labels) + 0.5 * penalty(D, real.requires_grad_(), labels).mean()


def with_gradient_penalty(D, real, fake, **labels):
    alpha = torch.rand(ROWS, 1, dtype=real.dtype)
    between = alpha * real + (1 - alpha) * fake
    between = between if between.requires_grad else between.requires_grad_()
    slope = (penalty(D, between, labels) + 1e-6).sqrt()
    return D(fake, **labels).mean() - D(real, **labels).mean() + (slope - 1).pow(2).mean()


def hinge(D, real, fake, **labels):
    return torch.relu(1 - D(real, **labels)).mean() + torch.relu(1 + D(fake, **labels)).mean()


def least_squares(D, real, fake, **labels):
    return (D(real, **labels) - 1).square().mean() + D(fake, **labels).square().mean()


def relativistic(D, real, fake, **labels):
    return softplus(D(fake, **labels) - D(real, **labels)).mean()


def raise_logits(D, real, fake, **labels):
    return -D(fake, **labels).mean()


OBJECTIVES = {
    "non saturating": (cross_entropy, lambda D, real, fake, **y: softplus(-D(fake, **y)).mean()),
    "minimax": (cross_entropy, lambda D, real, fake, **y: -cross_entropy(D, real, fake, **y)),
    "least squares": (least_squares, lambda D, real, fake, **y: (D(fake, **y) - 1).square().mean()),
    "relativistic": (relativistic, lambda D, real, fake, **y: relativistic(D, fake, real, **y)),
    "hinge": (hinge, raise_logits),
    "wgan-gp": (with_gradient_penalty, raise_logits),
    "r1": (with_r1, lambda D, real, fake, **y: softplus(-D(fake, **y)).mean()),
    "feature matching": (cross_entropy, lambda D, r, f, **y: (D(r, **y).mean() - D(f, **y).mean()).square()),
}


@dataclass(frozen=True)
class Case:
    """One user."""

    seed: int
    layers: tuple[str, ...]
    conditional: bool
    optimizer: str
    objective: str
    warm: int
    steps: int
    backward: Any
    average: bool
    stop_gradient: bool
    resample: bool
    mode: str
    frozen_at_call: bool
    eval_mode: bool
    clip: bool
    decay: bool
    single: bool
    carries: tuple[str, ...] = ()

    @property
    def random(self) -> bool:
        """Whether it draws numbers, which are others in float32; or has a kink."""
        return "dropout" in self.layers or self.objective in ("wgan-gp", "hinge")

    def world(self) -> World:
        """In float64, from values that float32 holds too."""
        torch.manual_seed(self.seed)
        G, D = small_generator(), Net(self.layers, self.conditional, self.carries).double()
        D.train(not self.eval_mode)
        with torch.no_grad():
            for p in (*G.parameters(), *D.parameters()):
                p.copy_(p.float())
        noises, reals = torch.randn(2, DRAWS, ROWS, 2).double()
        d_loss, g_loss = OBJECTIVES[self.objective]
        if "hook in the loss" in self.carries:
            d_loss = with_hook(d_loss)
        optimizer = OPTIMIZERS[self.optimizer](D.parameters())
        if "step of its own" in self.carries:
            kind = type(optimizer)
            optimizer.__class__ = type("Mine", (kind,), {"step": clipping(kind.step)})
        labels = {"labels": torch.randint(3, (ROWS,))} if self.conditional else {}

        def batch(i):
            dtype = next(G.parameters()).dtype
            return reals[i % DRAWS].to(dtype, copy=True), G(noises[i % DRAWS].to(dtype))

        return World(
            D,
            optimizer,
            G,
            batch,
            d_loss,
            g_loss,
            labels,
            resample=self.resample,
            frozen=[D.frozen] if D.frozen is not None else [],
        ).warm(self.warm)

    def unrolled(self, world: World) -> UnrolledGeneratorLoss:
        """What the user writes."""
        made = UnrolledGeneratorLoss(
            world.discriminator,
            world.optimizer,
            world.d_loss,
            world.g_loss,
            steps=self.steps,
            resample=world.draw if self.resample else None,
            stop_gradient=self.stop_gradient,
            average=self.average,
            backward=self.backward,
            grad_transform=shrink if self.clip else None,
            param_transform=(lambda p: 0.9 * p) if self.decay else None,
        )
        if self.frozen_at_call:
            world.discriminator.requires_grad_(False)
        return made

    def oracle_options(self) -> dict[str, Any]:
        """The same for `reference.value`."""
        options: dict[str, Any] = {"steps": self.steps, "average": self.average}
        if self.clip:
            options["after_backward"] = shrink_all
        if self.decay:
            options["after_step"] = decay
        return options

    def constant(self) -> int:
        """How many of the first steps are not differentiated."""
        if self.stop_gradient:
            return self.steps
        return self.steps - self.backward.steps if isinstance(self.backward, Truncate) else 0


def with_hook(d_loss):
    """A loss with a hook on what it computes, which changes gradients."""

    def hooked(*args, **kwargs):
        loss = d_loss(*args, **kwargs)
        loss.register_hook(lambda g: 0.7 * g)
        return loss * 1.0

    return hooked


def shrink(grads):
    """Smooth clipping by the global norm."""
    norm = torch.sqrt(sum(g.square().sum() for g in grads) + 1e-12)
    return [g / (1 + norm) for g in grads]


def shrink_all(params):
    present = [p for p in params if p.grad is not None]
    for p, g in zip(present, shrink([p.grad for p in present]), strict=True):
        p.grad = g


def decay(params):
    with torch.no_grad():
        for p in params:
            p.mul_(0.9)


def to_single(world: World, optimizer: str) -> None:
    """The same user in float32, from the same values."""
    state = world.optimizer.state_dict()
    world.discriminator.float(), world.generator.float()
    world.optimizer = OPTIMIZERS[optimizer](world.discriminator.parameters())
    world.optimizer.load_state_dict(state)


PLAIN = ["sgd", "adam", "sgd_momentum"]
EXACT = [Store(), Recompute(), Recompute(every=2)]


@st.composite
def cases(draw, kind: str) -> Case:
    """A case whose backward is of the given kind."""
    steps = draw(st.integers(1, 4))
    inner = draw(st.sampled_from(EXACT))
    backward = {
        "store": Store(),
        "recompute": draw(st.sampled_from(EXACT[1:])),
        "truncate": Truncate(draw(st.integers(1, steps)), inner),
        "difference": FiniteDifference(central=True),
    }[kind]
    resample, warm = draw(st.booleans()), draw(st.sampled_from([0, 1, 5]))
    # Differences of gradients that a hook changes are refused.
    able = [one for one in CARRIED if (kind, one) != ("difference", "hook in the loss")]
    carries = tuple(draw(st.lists(st.sampled_from(able), max_size=2, unique=True))) if draw(st.booleans()) else ()
    return Case(
        seed=draw(st.integers(0, 2**31)),
        layers=tuple(draw(st.lists(st.sampled_from(list(LAYERS)), max_size=4))),
        conditional=draw(st.booleans()),
        optimizer=draw(st.sampled_from(PLAIN if "step of its own" in carries else list(OPTIMIZERS))),
        # A difference over the hinge's kink is no derivative: told in some of 100 such users.
        objective=draw(st.sampled_from([one for one in OBJECTIVES if (kind, one) != ("difference", "hinge")])),
        warm=warm,
        steps=steps,
        backward=backward,
        # The oracle's g_loss counts on D between two steps, where the mean asks; an unroll puts that back.
        average=draw(st.booleans()) and "object" not in carries,
        stop_gradient=kind == "store" and draw(st.integers(0, 5)) == 0,
        resample=resample,
        mode="argument" if resample else draw(st.sampled_from(["argument", "closure", "rerun"])),
        frozen_at_call=draw(st.booleans()),
        eval_mode=draw(st.booleans()),
        clip=draw(st.integers(0, 3)) == 0,
        # The oracle's decay is of every parameter, a frozen one included.
        decay=draw(st.integers(0, 3)) == 0 and "frozen part" not in carries,
        # In float32 a fresh Adam makes whole steps of rounding.
        single=draw(st.integers(0, 3)) == 0 and warm > 0 and not carries,
        carries=carries,
    )
