"""A sequence of updates: which player moves when, by which loss, and which parameters it moves."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from torch import Tensor, nn

from ..messages import described
from ..optimizers.family import stepped
from .call import Loss
from .discriminator import all_modules, all_parameters, given_modules
from .losses import check_losses
from .optimizer import Steppers

Order = Literal["alternating", "simultaneous", "level-k"]
ORDERS: tuple[str, ...] = get_args(Order)


@dataclass(frozen=True)
class PlayerLoss:
    """A loss that receives its own player first, whatever it is called with."""

    player: Any
    loss: Callable[..., Tensor]

    def __call__(self, _: Any, *batch: Any, **kwargs: Any) -> Tensor:
        """Return ``loss(player, *batch, **kwargs)``."""
        return self.loss(self.player, *batch, **kwargs)


class Move(NamedTuple):
    """One update of a look-ahead."""

    name: str  # What messages call the loss.
    loss: Loss  # A function that is called as ``d_loss`` is, and passes its own player on.
    mine: frozenset[int]  # Positions of the parameters that the update moves.


class Updated(NamedTuple):
    """One entry of the user's list, with the modules of its player and the reader of its optimizer."""

    player: Any
    optimizer: Any
    loss: PlayerLoss
    modules: list[nn.Module]
    steppers: Steppers

    @property
    def frozen(self) -> list[Tensor]:
        """The parameters that have not required grad since the sequence was built, while others did."""
        return self.steppers.frozen

    @property
    def key(self) -> tuple[int, ...]:
        """What tells one player from another: the ids of its modules."""
        return tuple(id(m) for m in self.modules)

    def owned(self) -> list[Tensor]:
        """Return the parameters that this update moves, as they are now."""
        return self.steppers.owned(self.modules, self.steppers.plain(self.optimizer))


def updates_of(updates: Any) -> list[Updated]:
    """Return the user's updates, resolved; raise if one is of a wrong form, or if players share parameters."""
    if not isinstance(updates, (list, tuple)) or not updates:
        raise TypeError(
            f"updates is {described(updates)}. Pass a list such as [(D, opt_D, d_loss), (G, opt_G, g_loss)]."
        )
    found = [_update_of(i, one) for i, one in enumerate(updates)]
    _check_apart(found)
    return found


def _update_of(i: int, one: Any) -> Updated:
    if not isinstance(one, (list, tuple)) or len(one) != 3:
        raise TypeError(
            f"updates[{i}] is {described(one)}. Pass (player, optimizer, loss), such as (D, opt_D, d_loss)."
        )
    player, optimizer, loss = one
    check_losses(**{f"updates[{i}].loss": loss})
    modules = all_modules(given_modules(player, f"updates[{i}].player"))
    if optimizer is None or (callable(optimizer) and not hasattr(optimizer, "step")):
        raise TypeError(
            f"updates[{i}] has {described(optimizer)} for an optimizer. Every player of a sequence needs the live "
            "optimizer that steps it."
        )
    steppers = Steppers(optimizer, all_parameters(modules), f"the player of updates[{i}]")
    found = Updated(player, optimizer, PlayerLoss(player, loss), modules, steppers)
    found.owned()
    return found


def _check_apart(updates: Sequence[Updated]) -> None:
    mover: dict[int, tuple[int, ...]] = {}
    for update in updates:
        for p in update.owned():
            if mover.setdefault(id(p), update.key) != update.key:
                raise ValueError(
                    f"Two players share a parameter of shape {tuple(p.shape)}, and the optimizers of both hold it: it "
                    "is unclear whose update moves it. Let one of them hold it, or none."
                )


@dataclass(frozen=True)
class JointLoss:
    """The losses of all updates as one object, for whoever looks at what the losses of a call refer to."""

    losses: tuple[PlayerLoss, ...]

    def __call__(self, *_: Any, **__: Any) -> Tensor:
        """Raise, because each loss is called alone."""
        raise TypeError("The losses of a sequence are called one by one.")


def parts_of(loss: Any) -> list[Any]:
    """Return the user's own losses, and the players that they receive, of which a loss of a sequence consists."""
    if isinstance(loss, JointLoss):
        return [part for one in loss.losses for part in parts_of(one)]
    return [loss.loss, loss.player] if isinstance(loss, PlayerLoss) else [loss]


def players_of(updates: Sequence[Updated]) -> set[tuple[int, ...]]:
    """Return the key of every player, once even if it moves several times in a round."""
    return {update.key for update in updates}


def moves_of(updates: Sequence[Updated], order: Order, owned: Sequence[Tensor]) -> list[list[Move]]:
    """Return, for each inner step of one round, the moves that are made at the same point."""
    moves = []
    for k, update in enumerate(updates):
        held = {id(p) for one in update.steppers.plain(update.optimizer) for p in stepped(one)}
        mine = frozenset(i for i, p in enumerate(owned) if id(p) in held)
        moves.append(Move(f"updates[{k}].loss", update.loss, mine))
    return [moves] if order == "simultaneous" else [[move] for move in moves]
