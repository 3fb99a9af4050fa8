"""``UnrolledSequence``: a loss after several players have moved, by a list of updates."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .backward import Recompute, Store
from .call.batch import distinct
from .call.call import Loss
from .call.discriminator import all_modules, all_parameters, given_modules
from .call.losses import check_losses
from .call.names import Names
from .call.sequence import ORDERS, JointLoss, Order, PlayerLoss, Updated, moves_of, players_of, updates_of
from .loss import UnrolledLoss
from .messages import described
from .unrolling.rounds import Rounds

_NOT_OURS = ("average_gradients", "grad_transform", "param_transform")


class UnrolledSequence(UnrolledLoss):
    """loss(θ^K), once all players have moved by K rounds of updates, each by its own loss and optimizer.

    The gradient is the total derivative by the parameters of ``asker`` at the start. It passes through every update,
    those of the asker included, so that a generator can react as if G and D had updated already.

    Args:
        updates: the updates of one round, each ``(player, optimizer, loss)``, such as
            ``[(D, opt_D, d_loss), (G, opt_G, g_loss)]``; a player may move several times. A loss is a function
            ``(player, *batch, **kwargs) -> scalar`` of its own player, and calls the other players as it likes. As the
            generator moves, losses call it on noise that the batch holds.
        loss: ``(asker, *batch, **kwargs) -> scalar``, which a call returns the value of.
        asker: the player that minimises ``loss``: one of those above, or a module that does not move.
        order: "alternating" takes one update after the other. "simultaneous" takes all gradients of a round at the same
            point, and then all steps. "level-k" (Liu and Pavel 2022) moves each player from where it
            is at the call, against the others as updated so far, and evaluates ``loss`` in the same way. It has the
            first term alone and needs ``stop_gradient=True``.
        **options: of the keyword arguments of ``UnrolledLoss``, ``steps``, the number of rounds; ``resample``, which
            gives one batch a round; ``stop_gradient``; ``average``; and ``backward``, a ``Store`` or a ``Recompute``.

    Raises:
        TypeError: an argument is of a wrong type, or a player has no live optimizer.
        ValueError: players share parameters, or the order is unknown.

    Examples:
        >>> G, D = torch.nn.Linear(4, 2), torch.nn.Linear(2, 1)
        >>> opt_G, opt_D = torch.optim.Adam(G.parameters(), 1e-3), torch.optim.Adam(D.parameters(), 1e-3)
        >>> def d_loss(D, real, z):
        ...     return unroll_wrap.non_saturating.d_loss(D, real, G(z))
        >>> def g_loss(G, real, z):
        ...     return unroll_wrap.non_saturating.g_loss(D, real, G(z))
        >>> round = [(D, opt_D, d_loss), (G, opt_G, g_loss)]
        >>> unrolled = unroll_wrap.UnrolledSequence(round, g_loss, G, steps=2)
        >>> unrolled(torch.randn(8, 2), torch.randn(8, 4)).backward()  # followed by opt_G.step()
        >>> G.weight.grad.shape, D.weight.grad
        (torch.Size([2, 4]), None)
    """

    names = Names(
        "a player",
        "updates",
        "loss",
        "the asker",
        "Let them call it while its parameters require grad",
        short="a player",
    )

    def __init__(self, updates: Any, loss: Loss, asker: Any, *, order: Order = "alternating", **options: Any) -> None:
        check_losses(loss=loss)
        self._updates = tuple(updates_of(updates))
        self.order: Order = order
        self.asker = all_modules(given_modules(asker, "the asker"))
        self._asker = asker  # The object that the user passed, which the loss receives.
        players = [player for update in self.updates for player in given_modules(update.player)]
        optimizers = [one for update in self.updates for one in update.steppers.plain(update.optimizer)]
        super().__init__(
            distinct(players),
            distinct(optimizers),
            JointLoss(tuple(update.loss for update in self.updates)),
            PlayerLoss(asker, loss),
            **options,
        )
        self._check_options()
        self._check_asker()

    @property
    def updates(self) -> tuple[Updated, ...]:
        """The updates of one round, each with its player, optimizer and loss."""
        return self._updates

    def _check_options(self) -> None:
        """Raise if the options, which may have been set since construction, are none of a sequence's."""
        if self.order not in ORDERS:
            raise ValueError(f"order is {self.order!r}. Pass one of {', '.join(map(repr, ORDERS))}.")
        if self.order == "level-k" and not self.stop_gradient:
            raise ValueError('order="level-k" has no second derivatives. Pass stop_gradient=True with it.')
        if self.order == "simultaneous" and len(players_of(self.updates)) < len(self.updates):
            raise ValueError('A player moves twice in one round, and order="simultaneous" takes one step of each.')
        if refused := [name for name in _NOT_OURS if getattr(self, name)]:
            raise TypeError(f"A sequence takes no {', '.join(refused)}. Leave them out.")
        if not isinstance(self.backward, (Store, Recompute)):
            raise TypeError(f"A sequence is unrolled by Store() or Recompute(), not by {described(self.backward)}.")

    def _asked(self) -> set[int]:
        """Return the ids of the asker's parameters."""
        return {id(p) for p in all_parameters(self.asker)}

    def _check_asker(self) -> None:
        asked = self._asked()
        for player in players_of(self.updates):
            own = {id(p) for update in self.updates if update.key == player for p in update.owned()}
            if asked & own and not own <= asked:
                raise ValueError(
                    "The asker holds some parameters of a player, and not all. Pass one of the players of the updates, "
                    "or a module that shares no parameter with them."
                )

    def losses(self, options: Mapping[str, Any]) -> tuple[Loss, Loss]:
        """Return the losses of a call, of which the last may be another one than the constructor's."""
        self._check_options()
        if options.get("updates") is not None:
            raise TypeError("A call got updates, which are fixed. Make another UnrolledSequence of them.")
        updates, loss = super().losses(options)
        return updates, loss if isinstance(loss, PlayerLoss) else PlayerLoss(self._asker, loss)

    def parts(self) -> tuple[list[nn.Module], list[Any], list[Tensor]]:
        """Return the modules and optimizers of all players, and the parameters that the updates move."""
        modules, optimizers, _ = super().parts()
        return modules, optimizers, distinct(p for update in self.updates for p in update.owned())

    def unroll(self, owned: list[Tensor], **fields: Any) -> Rounds:
        """Return the unroll of one call, before its first step."""
        asked = self._asked()
        asker = frozenset(i for i, p in enumerate(owned) if id(p) in asked)
        moves = moves_of(self.updates, self.order, owned)
        return Rounds(**fields, moves=moves, asker=asker, anew=self.order == "level-k")

    @property
    def round(self) -> int:
        """The number of inner steps in one round."""
        return 1 if self.order == "simultaneous" else len(self.updates)

    @property
    def moves_asker(self) -> bool:
        """Whether the player that asks is among those that move."""
        asked = self._asked()
        return any(id(p) in asked for update in self.updates for p in all_parameters(update.modules))

    def others(self) -> list[nn.Module]:
        """Return the modules whose parameters the gradient is not asked for."""
        asked = {id(m) for m in self.asker}
        return [m for update in self.updates for m in update.modules if id(m) not in asked]
