"""Remedies that change the direction of both players: consensus optimization and symplectic gradient adjustment.

With v = (∇_D d_loss, ∇_G g_loss), H its Jacobian and both gradients taken at the same point, Adam gets

    v + γ Hᵀv                  consensus optimization (Mescheder et al. 2017): Hᵀv is the gradient of ½‖v‖²
    v ± λ ½ (Hᵀv - Hv)         symplectic gradient adjustment (Balduzzi et al. 2018), with their choice of sign
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from remedy.players import Players, Update
from remedy.task import Minibatch

CONSENSUS = 1.0
SYMPLECTIC = 1.0


def consensus(v: Sequence[Tensor], parameters: Sequence[Tensor]) -> Sequence[Tensor]:
    """V + γ Hᵀv."""
    return torch._foreach_add(v, torch.autograd.grad(half_square(v), parameters), alpha=CONSENSUS)


def symplectic(v: Sequence[Tensor], parameters: Sequence[Tensor]) -> Sequence[Tensor]:
    """V ± λ ½ (Hᵀv - Hv)."""
    of_norm = torch.autograd.grad(half_square(v), parameters, retain_graph=True)  # Hᵀv
    # Hv by two backward passes: the derivative of Hᵀu by u, at v.
    u = [torch.zeros_like(part, requires_grad=True) for part in v]
    transposed = torch.autograd.grad(v, parameters, u, create_graph=True)
    along = torch.autograd.grad(transposed, u, [part.detach() for part in v])
    adjustment = [(a - b) / 2 for a, b in zip(of_norm, along, strict=True)]
    count = sum(part.numel() for part in v)
    sign = torch.sign(inner(v, of_norm) * inner(adjustment, of_norm) / count + 0.1)
    return [part + SYMPLECTIC * sign * change for part, change in zip(v, adjustment, strict=True)]


def half_square(v: Sequence[Tensor]) -> Tensor:
    """½‖v‖²."""
    return inner(v, v) / 2


def inner(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """⟨a, b⟩ over all parameters."""
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()


def adjusted(by: Callable[..., Sequence[Tensor]]) -> Callable[[Players], Update]:
    """Both players step at once, in the direction that `by` makes of their gradients."""

    def start(players: Players) -> Update:
        G, D, opt_G, opt_D, d_loss, g_loss = players
        of_D, of_G = list(D.parameters()), list(G.parameters())

        def update(for_D: Minibatch, for_G: Minibatch) -> None:
            of_first = G(for_D.z)
            of_second = of_first if for_G is for_D else G(for_G.z)
            v = [
                *torch.autograd.grad(d_loss(D, for_D.real, of_first), of_D, create_graph=True),
                *torch.autograd.grad(g_loss(D, for_G.real, of_second), of_G, create_graph=True),
            ]
            for parameter, direction in zip([*of_D, *of_G], by(v, [*of_D, *of_G]), strict=True):
                parameter.grad = direction.detach()
            opt_D.step()
            opt_G.step()

        return update

    return start
