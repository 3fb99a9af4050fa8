"""Two players and the oracle of their look-ahead: real steps of deep copies, written out. Never imports the package."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import softplus


class Momentum(torch.optim.Optimizer):
    """A stranger's optimizer: momentum that also counts its steps on itself, and steps with no gradients too."""

    def __init__(self, params, lr=0.05):
        super().__init__(params, {"lr": lr})
        self.steps = 0

    def __getstate__(self):
        return {**super().__getstate__(), "steps": self.steps}

    @torch.no_grad()
    def step(self, closure=None):
        """θ ← θ - lr / √n · m, with n the number of steps taken."""
        self.steps += 1
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                m.mul_(0.7).add_(p.grad)
                p.sub_(m * (group["lr"] / self.steps**0.5))


OPTIMIZERS = {
    "adam": lambda params: torch.optim.Adam(params, 0.02, betas=(0.5, 0.9)),
    "rmsprop": lambda params: torch.optim.RMSprop(params, 0.01, momentum=0.5),
    "sgd": lambda params: torch.optim.SGD(params, 0.1, momentum=0.9, weight_decay=0.1),
    "stranger": Momentum,
}


class Discriminator(nn.Module):
    """An MLP with a head that `g_loss` alone asks, so that `d_loss` leaves it without a gradient."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 6), nn.Tanh())
        self.head, self.aside = nn.Linear(6, 1), nn.Linear(6, 1)

    def forward(self, x):
        """A logit."""
        return self.head(self.body(x))


def trained(player):
    """The parameters of a player that are not frozen."""
    return [p for p in player.parameters() if p.requires_grad]


@dataclass
class Game:
    """Players, optimizers and a batch; `encoder` moves in no update, and changes the noise."""

    G: nn.Module
    D: nn.Module
    encoder: nn.Module
    opt_G: Any
    opt_D: Any
    batch: tuple

    def fake(self, z):
        return self.G(self.encoder(z))

    def d_loss(self, D, real, z):
        return softplus(-D(real)).mean() + softplus(D(self.fake(z))).mean() + 0.1 * D.head.weight.square().sum()

    def g_loss(self, G, real, z):
        fake = G(self.encoder(z))
        return softplus(-self.D(fake)).mean() + 0.1 * self.D.aside(self.D.body(fake)).square().mean()

    def e_loss(self, encoder, real, z):
        return softplus(-self.D(self.G(encoder(z)))).mean()

    @property
    def discriminator(self):
        return [self.D, self.encoder]

    @property
    def generator(self):
        return self.G

    def optimizers(self):
        return [self.opt_D, self.opt_G]

    def losses(self):
        return {"D": self.d_loss, "G": self.g_loss, "encoder": self.e_loss}

    def step(self, name, grads=None):
        """One real update of a player; from the given gradients, or from its own loss."""
        player, optimizer = getattr(self, name), getattr(self, f"opt_{name}")
        params = trained(player)
        optimizer.zero_grad()
        for p, g in zip(params, grads or self.gradients(name), strict=True):
            p.grad = g
        optimizer.step()

    def gradients(self, name):
        player = getattr(self, name)
        loss = self.losses()[name](player, *self.batch)
        return torch.autograd.grad(loss, trained(player), allow_unused=True)


def warm_game(optimizers=("adam", "rmsprop"), norm=False):
    """A game after ten rounds of training, always the same."""
    torch.manual_seed(0)
    layers = [nn.Linear(3, 6), *([nn.BatchNorm1d(6)] if norm else []), nn.Tanh(), nn.Linear(6, 2)]
    G, D, encoder = nn.Sequential(*layers).double(), Discriminator().double(), nn.Linear(3, 3).double()
    of_D, of_G = optimizers
    batch = torch.randn(8, 2).double() + 1, torch.randn(8, 3).double()
    game = Game(G, D, encoder, OPTIMIZERS[of_G](G.parameters()), OPTIMIZERS[of_D](D.parameters()), batch)
    for _ in range(10):
        game.step("D")
        game.step("G")
    game.opt_D.zero_grad()
    game.opt_G.zero_grad()
    return game


def after(game, order, names, steps, asker, batches=None):
    """The values of the asker's loss at the start and after each of K real rounds."""
    real = copy.deepcopy(game)
    found = [_value(real, real, order, asker)]
    for k in range(steps):
        real.batch = batches[k] if batches else game.batch
        if order == "simultaneous":
            grads = [real.gradients(name) for name in names]
            for name, g in zip(names, grads, strict=True):
                real.step(name, g)
        for name in names if order != "simultaneous" else []:
            if order == "level-k":
                _return(real, game, name)
            real.step(name)
        real.batch = game.batch
        found.append(_value(real, game, order, asker))
    return found


def _value(real, game, order, asker):
    aside = copy.deepcopy(real)
    if order == "level-k" and asker != "encoder":
        _return(aside, game, asker)
    return aside.losses()[asker](getattr(aside, asker), *aside.batch).item()


def _return(real, game, name):
    """Put a player and its optimizer back to the start."""
    with torch.no_grad():
        for p, start in zip(getattr(real, name).parameters(), getattr(game, name).parameters(), strict=True):
            p.copy_(start)
    one, start = getattr(real, f"opt_{name}"), getattr(game, f"opt_{name}")
    one.load_state_dict(copy.deepcopy(start.state_dict()))
    if hasattr(start, "steps"):
        one.steps = start.steps
