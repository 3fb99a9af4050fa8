"""Extragradient with Adam (Gidel et al. 2019): step, take the gradient there, and step by it from where you were.

Both steps move Adam's averages, as in the authors' ExtraAdam, and both are on the same minibatches.
"""

from collections.abc import Callable

import torch

from remedy.players import Players, Update, plain_loss_of_D
from remedy.task import Minibatch
from unroll_wrap import UnrolledGeneratorLoss


def extragradient(steps: int = 0) -> Callable[[Players], Update]:
    """Both players at once; with `steps`, G's gradient is at both points that of its unrolled loss."""

    def start(players: Players) -> Update:
        G, D, opt_G, opt_D, d_loss, g_loss = players
        loss_of_D = plain_loss_of_D(players)
        ahead = UnrolledGeneratorLoss(D, opt_D, d_loss, g_loss, steps=steps)
        parameters = [*D.parameters(), *G.parameters()]

        def backward(for_D: Minibatch, for_G: Minibatch) -> None:
            opt_G.zero_grad()
            real, fake = for_G.real, G(for_G.z)
            (ahead(real, fake) if steps else g_loss(D, real, fake)).backward()
            opt_D.zero_grad()
            loss_of_D(*for_D).backward()

        def step() -> None:
            opt_D.step()
            opt_G.step()

        def update(for_D: Minibatch, for_G: Minibatch) -> None:
            before = [parameter.detach().clone() for parameter in parameters]
            backward(for_D, for_G)
            step()
            # The gradient of the second step is taken where the first one led, and applied where it began.
            backward(for_D, for_G)
            with torch.no_grad():
                torch._foreach_copy_(parameters, before)
            step()

        return update

    return start
