"""The two players and their losses, and the usual loop, which takes what each of them minimises."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from remedy.task import Minibatch

# One update of both players, on a minibatch for D's and one for G's. They are the same, or they are not.
Update = Callable[[Minibatch, Minibatch], None]
Loss = Callable[[Tensor, Tensor], Tensor]


class Players(NamedTuple):
    """Networks, optimizers and losses `(D, real, fake)`."""

    G: nn.Module
    D: nn.Module
    opt_G: torch.optim.Optimizer
    opt_D: torch.optim.Optimizer
    d_loss: Callable[..., Tensor]
    g_loss: Callable[..., Tensor]


def in_turn(players: Players, loss_of_D: Loss, loss_of_G: Loss) -> Update:
    """D moves, then G, each by one step on `loss(real, z)`."""

    def update(for_D: Minibatch, for_G: Minibatch) -> None:
        moves = (players.opt_D, loss_of_D, for_D), (players.opt_G, loss_of_G, for_G)
        for optimizer, loss, minibatch in moves:
            value = loss(*minibatch)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()

    return update


def plain_loss_of_D(players: Players) -> Loss:
    """D's loss on fakes that it cannot change."""

    def loss(real: Tensor, z: Tensor) -> Tensor:
        with torch.no_grad():
            fake = players.G(z)
        return players.d_loss(players.D, real, fake)

    return loss
