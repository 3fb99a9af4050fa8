"""Find what a loss changes besides what it returns, which compiled code would leave out."""

from collections.abc import Iterator
from contextlib import contextmanager

from ...live.random_state import EveryState
from ...live.snapshot import Snapshot
from ...unrolling.unroll import Unroll


@contextmanager
def without_effects(unroll: Unroll) -> Iterator[None]:
    """Put back what the player's loss changes within this context.

    Raises:
        ValueError: it changes more than tensors, such as a count, or draws random numbers.
    """
    swap = unroll.evaluate.swap
    swap.out()
    state = EveryState(unroll.evaluate.owned, ())
    with state.replayed(), Snapshot([unroll.d_loss, swap.modules], names=True, bare=swap.ids) as before:
        yield
        swap.out()
        if not state.is_now():
            raise ValueError("it draws random numbers")
        if what := next(before.changes(), None):
            raise ValueError(f"it changes {what}, which compiled code would not do")
