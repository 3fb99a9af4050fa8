"""Exchange the contents of the user's tensor objects with those of an unroll's tensors, and take them back."""

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import repeat

import torch
from torch import Tensor

from ..torch_private import profiler_enabled, put_versions, saving_hooks, swap_tensors
from .stand_ins import StandIns


def is_observed() -> bool:
    """Return whether something may hold on to the tensors that it sees."""
    return profiler_enabled() or saving_hooks()


def can_exchange(tensors: Iterable[Tensor]) -> bool:
    """Return whether torch exchanges the contents of these tensors, which it does not if there are weak references."""
    spare = torch.empty(0, device="cpu")
    there_and_back = [twice for t in tensors for twice in (t, t)]
    for _ in range(2):
        try:
            deque(map(swap_tensors, there_and_back, repeat(spare)), 0)
            return True
        except RuntimeError:
            # Autocast's cache refers to weights, and is no reason.
            torch.clear_autocast_cache()
    return False


class Exchange:
    """The user's tensors, and the unroll's tensors that hold their contents now."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors
        self._mine: Sequence[Tensor] = ()
        self._theirs: Sequence[Tensor] = ()
        # Tensors that are giving contents back before the others. An interrupt leaves it open which of them have.
        self.kept: Sequence[Tensor] = ()
        # The tensors that stand in for the user's, where torch refuses to exchange these; None elsewhere.
        self.stand_ins: StandIns | None = None
        self._refused: list[Tensor] = []

    def note(self) -> None:
        """Note where the contents belong."""
        self._homes = [t._cdata for t in self._tensors]
        # A profiler may begin at any time to refer to tensors, and torch would refuse to exchange them back. A hook on
        # saved tensors may keep the object that it is given, which is the user's own after an exchange.
        self.stand_ins = StandIns(self._tensors) if is_observed() else None

    def put(self, mine: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
        """Let some of the user's tensors hold the contents of the unroll's."""
        self._mine, self._theirs = mine, theirs
        for last in (False, True):
            try:
                self._all()
                return
            except RuntimeError:
                # Autocast's cache refers to weights, and is cleared there.
                self.home()
                if last:
                    self.stand_in()

    def stand_in(self) -> None:
        """Let the unroll's tensors stand in for the user's from now on, with which they have exchanged contents."""
        if not self.stand_ins:
            self.home()
            self.stand_ins = StandIns(self._tensors)
            self._all()

    def give_back(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Take the contents of some of the user's tensors back before the others: pairs of theirs and the unroll's."""
        self.kept = [theirs for _, theirs in pairs]
        for mine, theirs in pairs:
            swap_tensors(mine, theirs)
        gone = {id(mine) for mine, _ in pairs}
        left = [(m, t) for m, t in zip(self._mine, self._theirs, strict=True) if id(m) not in gone]
        self._mine, self._theirs = [m for m, _ in left], [t for _, t in left]

    def out(self) -> None:
        """Take the contents back after a complete exchange."""
        try:
            if self.stand_ins:
                self.stand_ins.leave()
            else:
                self._all()
        except RuntimeError:
            self.home()
            self.check_refused()
        self._mine = self._theirs = ()

    def home(self) -> None:
        """Take the contents back, also in the middle of an exchange, and as often as you like."""
        if self.stand_ins:
            self.stand_ins.leave()
            return
        if torch.is_autocast_cache_enabled():
            # Autocast's cache holds references to weights, which prevent an exchange.
            torch.clear_autocast_cache()
        lent = {t._cdata: t for t in (*self._theirs, *self.kept)}
        for mine, home in zip(self._tensors, self._homes, strict=True):
            if mine._cdata == home or any(mine is t for t in self._refused):
                continue
            try:
                swap_tensors(mine, lent[home])
            except RuntimeError:
                self._refused.append(mine)
                _copy_back(mine, lent[home])

    def check_refused(self) -> None:
        """Raise if contents could not be taken back, and were copied."""
        if self._refused:
            raise RuntimeError(
                f"While a loss ran, something began to hold weak references to {len(self._refused)} tensors of D, as a "
                "profiler does that is started in a loss. D has its values back, but graphs that were made of these "
                "tensors before the call no longer lead to them. Start a profiler around the call."
            )

    def _all(self) -> None:
        if self.stand_ins:
            self.stand_ins.put(self._mine, self._theirs)
        else:
            # ``deque`` and ``map`` run in C, so no interrupt comes between two exchanges.
            deque(map(swap_tensors, self._mine, self._theirs), 0)


def _copy_back(mine: Tensor, theirs: Tensor) -> None:
    """Give a tensor object the memory, gradient, flag and version of the one that holds its contents."""
    mine.data, mine.grad = theirs.data, theirs.grad
    mine.requires_grad_(theirs.requires_grad)
    put_versions([mine], [theirs._version])
