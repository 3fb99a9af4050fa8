"""The names by which messages speak of the players and their losses."""

from typing import NamedTuple


class Names(NamedTuple):
    """What the arguments of an unrolled loss are called.

    Attributes:
        player: the player that moves.
        player_loss: the loss that it minimises by its steps.
        loss: the loss that is returned.
        asker: whoever minimises the loss that is returned.
        remedy: what to do if no loss depends on the latter.
        optional: whether the losses may be left out.
        short: the player that moves, in short texts.
    """

    player: str = "the player"
    player_loss: str = "player_loss"
    loss: str = "loss"
    asker: str = "anything outside the player"
    remedy: str = "Let them call what is to be trained"
    optional: bool = False
    short: str = "the player"


GENERATOR = Names(
    "the discriminator", "d_loss", "g_loss", "the generator", "Pass fake = G(z) with its graph", True, "D"
)
DISCRIMINATOR = Names("the generator", "g_loss", "d_loss", "the discriminator", "Let them call D", short="G")
