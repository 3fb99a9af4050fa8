"""The same call on another device: UNROLL_WRAP_DEVICE=cpu, cuda or xla. ``make test-xla`` and ``make gpu`` run this.

The oracle is the CPU in 64 bits, where every other test compares with real steps.
"""

import copy
import os
from functools import partial

import pytest
import torch
from torch import nn

from unroll_wrap import FiniteDifference, Recompute, Store, Truncate, UnrolledGeneratorLoss, hinge, non_saturating

NAME = os.environ.get("UNROLL_WRAP_DEVICE", "cpu")
# Of others it is not known whether they have 64 bits.
FLOAT = torch.float64 if NAME in ("cpu", "cuda", "xla") else torch.float32
TOLERANCE = 1e-9 if FLOAT is torch.float64 else 1e-5


def the_device() -> torch.device:
    if NAME != "xla":
        return torch.device(NAME)
    import torch_xla

    return torch_xla.device()


def conv(channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, channels, 3, stride=2, padding=1),
        nn.BatchNorm2d(channels),
        nn.LeakyReLU(0.2),
        nn.Conv2d(channels, 3, 3, padding=1, bias=False),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48, 1),
    )


NETS = {
    "mlp": ((5, 4), lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1))),
    "tanh": ((5, 4), lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 1))),
    "conv": ((6, 2, 8, 8), lambda: conv(4)),
    "wide conv": ((6, 2, 8, 8), lambda: conv(10)),
    "group norm": (
        (4, 2, 4, 4),
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten(), nn.Linear(16, 1)),
    ),
}
OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "adam": partial(torch.optim.Adam, lr=0.02, betas=(0.5, 0.9)),
    "amsgrad": partial(torch.optim.Adam, lr=0.02, amsgrad=True, weight_decay=0.01),
    "rmsprop": partial(torch.optim.RMSprop, lr=0.01),
}
BACKWARDS = {
    "store": {"backward": Store()},
    "recompute": {"backward": Recompute(every=2)},
    "truncate": {"backward": Truncate(1)},
    "average": {"average": True},
    "stop": {"stop_gradient": True},
}
LOSSES = {"non_saturating": non_saturating, "hinge": hinge}


class World:
    """D after two real steps on the CPU, then moved with its optimizer's state."""

    def __init__(self, net: str, optimizer: str, loss: str, device: torch.device, dtype: torch.dtype = FLOAT) -> None:
        torch.manual_seed(0)
        shape, make = NETS[net]
        D = make().double()
        moved = OPTIMIZERS[optimizer](D.parameters())
        self.losses = LOSSES[loss]
        batches = [torch.randn(shape, dtype=torch.float64) for _ in range(4)]
        for _ in range(2):
            moved.zero_grad()
            self.losses.d_loss(D, *batches[:2]).backward()
            moved.step()
        self.D = copy.deepcopy(D).to(device, dtype)
        self.optimizer = OPTIMIZERS[optimizer](self.D.parameters())
        self.optimizer.load_state_dict(moved.state_dict())
        self.real, self.fake = (b.to(device, dtype) for b in batches[2:])
        self.fake.requires_grad_()

    def found(self, steps: int = 3, **options) -> list[torch.Tensor]:
        """The value and the gradient, on the CPU."""
        unrolled = UnrolledGeneratorLoss(self.D, self.optimizer, *self.losses, steps=steps, **options)
        value = unrolled(self.real, self.fake)
        return [t.detach().cpu().double() for t in (value, torch.autograd.grad(value, self.fake)[0])]

    def state(self) -> list[torch.Tensor]:
        every = [*self.D.state_dict().values()]
        every += [v for s in self.optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
        return [t.detach().cpu().clone() for t in every]


def gap(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(one, other, strict=True))


CPU = torch.device("cpu")


TABLE = [(net, optimizer, backward) for net in NETS for optimizer in OPTIMIZERS for backward in BACKWARDS]
if NAME == "xla":
    # Which compiles every call of each of them, for minutes.
    TABLE = [
        ("mlp", "adam", "store"),
        ("conv", "adam", "store"),
        ("mlp", "sgd", "recompute"),
        ("tanh", "rmsprop", "stop"),
        ("tanh", "sgd", "average"),
        ("group norm", "amsgrad", "truncate"),
    ]


@pytest.mark.parametrize(("net", "optimizer", "backward"), TABLE)
def test_value_and_gradient_are_those_of_the_cpu(net, optimizer, backward):
    options, loss = BACKWARDS[backward], "hinge" if net == "mlp" else "non_saturating"
    here = World(net, optimizer, loss, the_device())
    before = here.state()
    found = here.found(**options)
    assert gap(found, World(net, optimizer, loss, CPU, torch.float64).found(**options)) <= TOLERANCE
    assert all(map(torch.equal, here.state(), before))


@pytest.mark.parametrize("net", ["mlp"] if NAME == "xla" else NETS)
def test_the_second_term_counts(net):
    """The control of the table: what it compares differs by more than it allows."""
    world = World(net, "adam", "non_saturating", the_device())
    exact, first, fewer = world.found(), world.found(stop_gradient=True), world.found(steps=2)
    assert gap(exact[1:], first[1:]) > 1e3 * TOLERANCE
    assert gap(exact, fewer) > 1e3 * TOLERANCE


@pytest.mark.parametrize("net", ["mlp"] if NAME == "xla" else ["mlp", "conv"])
def test_differences_come_near(net):
    here = World(net, "sgd", "non_saturating", the_device())
    exact, first = here.found(), here.found(stop_gradient=True)
    off = gap(here.found(backward=FiniteDifference(central=True))[1:], exact[1:])
    assert off < 1e-3 < gap(first[1:], exact[1:])


def test_training_goes_on():
    """A generator and D in a loop: G's loss falls, and D's parameters stay the optimizer's own."""
    torch.manual_seed(0)
    device = the_device()
    G = nn.Linear(3, 4).to(device, FLOAT)
    world = World("mlp", "adam", "non_saturating", device)
    unrolled = UnrolledGeneratorLoss(world.D, world.optimizer, *non_saturating, steps=2)
    step = torch.optim.SGD(G.parameters(), lr=0.2)
    z, values = torch.randn(5, 3, dtype=FLOAT).to(device), []
    for _ in range(4):
        step.zero_grad()
        value = unrolled(world.real, G(z))
        value.backward()
        step.step()
        values.append(value.item())
    assert values[-1] < values[0]
    assert all(p.device == world.real.device for p in world.D.parameters())
