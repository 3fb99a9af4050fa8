"""The two players and their losses, and the usual loop, which takes what each of them minimises."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

# One update of both players, on a minibatch of data and of noise.
Update = Callable[[Tensor, Tensor], None]


class Players(NamedTuple):
    """Networks, optimizers and losses `(D, real, fake)`."""

    G: nn.Module
    D: nn.Module
    opt_G: torch.optim.Optimizer
    opt_D: torch.optim.Optimizer
    d_loss: Callable[..., Tensor]
    g_loss: Callable[..., Tensor]


def in_turn(
    players: Players, loss_of_D: Callable[[Tensor, Tensor], Tensor], loss_of_G: Callable[[Tensor, Tensor], Tensor]
) -> Update:
    """D moves, then G, each by one step on `loss(real, z)`."""

    def update(real: Tensor, z: Tensor) -> None:
        for optimizer, loss in ((players.opt_D, loss_of_D), (players.opt_G, loss_of_G)):
            value = loss(real, z)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()

    return update


def plain_loss_of_D(players: Players) -> Callable[[Tensor, Tensor], Tensor]:
    """D's loss on fakes that it cannot change."""

    def loss(real: Tensor, z: Tensor) -> Tensor:
        with torch.no_grad():
            fake = players.G(z)
        return players.d_loss(players.D, real, fake)

    return loss
