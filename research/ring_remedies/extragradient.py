"""Extragradient with Adam (Gidel et al. 2019): step, take the gradient there, and step by it from where you were.

Both steps move Adam's averages, as in the authors' ExtraAdam, and both are on the same minibatch.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ring_remedies.players import Players, Update, plain_loss_of_D
from unroll_wrap import UnrolledGeneratorLoss


def extragradient(steps: int = 0) -> Callable[[Players], Update]:
    """Both players at once; with `steps`, G's gradient is at both points that of its unrolled loss."""

    def start(players: Players) -> Update:
        G, D, opt_G, opt_D, d_loss, g_loss = players
        loss_of_D = plain_loss_of_D(players)
        ahead = UnrolledGeneratorLoss(D, opt_D, d_loss, g_loss, steps=steps)
        parameters = [*D.parameters(), *G.parameters()]

        def backward(real: Tensor, z: Tensor) -> None:
            opt_G.zero_grad()
            fake = G(z)
            (ahead(real, fake) if steps else g_loss(D, real, fake)).backward()
            opt_D.zero_grad()
            loss_of_D(real, z).backward()

        def step() -> None:
            opt_D.step()
            opt_G.step()

        def update(real: Tensor, z: Tensor) -> None:
            before = [parameter.detach().clone() for parameter in parameters]
            backward(real, z)
            step()
            # The gradient of the second step is taken where the first one led, and applied where it began.
            backward(real, z)
            with torch.no_grad():
                torch._foreach_copy_(parameters, before)
            step()

        return update

    return start
