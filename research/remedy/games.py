"""Remedies that change the direction of both players: consensus optimization and symplectic gradient adjustment.

With v = (∇_D d_loss, ∇_G g_loss), H its Jacobian and both gradients taken at the same point, Adam gets

    v + γ Hᵀv                  consensus optimization (Mescheder et al. 2017): Hᵀv is the gradient of ½‖v‖²
    v ± λ ½ (Hᵀv - Hv)         symplectic gradient adjustment (Balduzzi et al. 2018), with their choice of sign
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from remedy.players import Players, Update
from remedy.task import Minibatch

CONSENSUS = 1.0
SYMPLECTIC = 1.0
# v at parameters of D and of G.
Directions = Callable[[Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor]]


def consensus(directions: Directions, of_D: Sequence[Tensor], of_G: Sequence[Tensor]) -> Sequence[Tensor]:
    """V + γ Hᵀv."""
    v, parameters = directions(of_D, of_G), [*of_D, *of_G]
    return torch._foreach_add(v, torch.autograd.grad(half_square(v), parameters), alpha=CONSENSUS)


def symplectic(directions: Directions, of_D: Sequence[Tensor], of_G: Sequence[Tensor]) -> Sequence[Tensor]:
    """V ± λ ½ (Hᵀv - Hv)."""
    v, parameters = directions(of_D, of_G), [*of_D, *of_G]
    of_norm = torch.autograd.grad(half_square(v), parameters)  # Hᵀv
    v = [part.detach() for part in v]
    # Hv in forward mode: torch cannot differentiate a transposed convolution with output padding a third time.
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(parameter, part) for parameter, part in zip(parameters, v, strict=True)]
        moved = directions(duals[: len(of_D)], duals[len(of_D) :])
        along = [forward_ad.unpack_dual(part).tangent for part in moved]
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


def at(net: nn.Module, parameters: Sequence[Tensor]) -> Callable[..., Tensor]:
    """The network as a function of its input, at other parameters; its statistics move as in any call."""
    names = (name for name, _ in net.named_parameters())
    return partial(functional_call, net, dict(zip(names, parameters, strict=True)))


def adjusted(by: Callable[..., Sequence[Tensor]]) -> Callable[[Players], Update]:
    """Both players step at once, in the direction that `by` makes of their gradients."""

    def start(players: Players) -> Update:
        G, D, opt_G, opt_D, d_loss, g_loss = players
        of_D, of_G = list(D.parameters()), list(G.parameters())

        def update(for_D: Minibatch, for_G: Minibatch) -> None:
            def directions(of_D: Sequence[Tensor], of_G: Sequence[Tensor]) -> Sequence[Tensor]:
                D_there, G_there = at(D, of_D), at(G, of_G)
                of_first = G_there(for_D.z)
                of_second = of_first if for_G is for_D else G_there(for_G.z)
                return [
                    *torch.autograd.grad(d_loss(D_there, for_D.real, of_first), of_D, create_graph=True),
                    *torch.autograd.grad(g_loss(D_there, for_G.real, of_second), of_G, create_graph=True),
                ]

            for parameter, direction in zip([*of_D, *of_G], by(directions, of_D, of_G), strict=True):
                parameter.grad = direction.detach()
            opt_D.step()
            opt_G.step()

        return update

    return start
