"""Unrolling and its variants: what stands in the place of the players' losses in the usual loop."""

from collections.abc import Callable
from typing import Any

from remedy.players import Players, Update, in_turn, plain_loss_of_D
from unroll_wrap import UnrolledDiscriminatorLoss, UnrolledGeneratorLoss, UnrolledSequence


def plain(players: Players) -> Update:
    """The usual loop."""
    G, D, *_ = players
    return in_turn(players, plain_loss_of_D(players), lambda real, z: players.g_loss(D, real, G(z)))


def unrolled(**options: Any) -> Callable[[Players], Update]:
    """G looks ahead at D by `UnrolledGeneratorLoss(**options)`."""

    def start(players: Players) -> Update:
        G, D, _, opt_D, d_loss, g_loss = players
        ahead = UnrolledGeneratorLoss(D, opt_D, d_loss, g_loss, **options)
        return in_turn(players, plain_loss_of_D(players), lambda real, z: ahead(real, G(z)))

    return start


def both(players: Players) -> Update:
    """Each looks one step ahead at the other."""
    G, D, opt_G, opt_D, d_loss, g_loss = players
    of_G = UnrolledGeneratorLoss(D, opt_D, d_loss, g_loss, steps=1)
    of_D = UnrolledDiscriminatorLoss(
        G,
        opt_G,
        lambda G, real, z: g_loss(D, real, G(z)),
        lambda G, real, z: d_loss(D, real, G(z)),
        steps=1,
    )
    return in_turn(players, of_D, lambda real, z: of_G(real, G(z)))


def level_k(players: Players) -> Update:
    """Each plays against an opponent that has reacted to its own reaction, first terms alone."""
    G, D, opt_G, opt_D, d_loss, g_loss = players

    def of_D(D: Any, real: Any, z: Any) -> Any:
        return d_loss(D, real, G(z))

    def of_G(G: Any, real: Any, z: Any) -> Any:
        return g_loss(D, real, G(z))

    move_D, move_G = (D, opt_D, of_D), (G, opt_G, of_G)
    options = {"order": "level-k", "steps": 1, "stop_gradient": True}
    return in_turn(
        players,
        UnrolledSequence([move_D, move_G], of_D, D, **options),
        UnrolledSequence([move_G, move_D], of_G, G, **options),
    )
