"""The names by which messages speak of the players and their losses."""

from typing import NamedTuple


class Names(NamedTuple):
    """What the arguments of an unrolled loss are called."""

    player: str = "the player"  # The player that moves.
    player_loss: str = "player_loss"  # The loss that it minimises by its steps.
    loss: str = "loss"  # The loss that is returned.
    asker: str = "anything outside the player"  # Whoever minimises the loss that is returned.
    remedy: str = "Let them call what is to be trained"  # What to do if no loss depends on the latter.
    optional: bool = False  # Whether the losses may be left out.
    short: str = "the player"  # The player that moves, in short texts.


GENERATOR = Names(
    "the discriminator", "d_loss", "g_loss", "the generator", "Pass fake = G(z) with its graph", True, "D"
)
DISCRIMINATOR = Names("the generator", "g_loss", "d_loss", "the discriminator", "Let them call D", short="G")
