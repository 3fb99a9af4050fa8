"""Frozen parameters, which may be large: only those that a loss writes to are copied for every evaluation."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn


def left_alone(carried: Sequence[Tensor], clones: Mapping[int, Tensor], shared: Sequence[Sequence[Tensor]]) -> set[int]:
    """Return the positions of the frozen parameters that a first loss has left alone.

    Args:
        carried: the user's own tensors, which hold the clones now.
        clones: what they held before, by position.
        shared: pairs of tensors in the same memory.

    Raises:
        ValueError: the loss has written to one of such a pair.
    """
    together = {id(t) for pair in shared for t in pair}
    alone: set[int] = set()
    for i, clone in clones.items():
        mine = carried[i]
        frozen = isinstance(mine, nn.Parameter) and mine._version == 0
        if not (frozen or id(mine) in together):
            continue
        if _equal(mine, clone):
            alone |= {i} if frozen else set()
        elif id(mine) in together:
            raise ValueError(
                f"d_loss writes to a tensor of the discriminator, of shape {tuple(mine.shape)}, that lies in the same "
                "memory as another: a real step changes both, and an unroll would change one. Give each a copy "
                "(.clone())."
            )
    return alone


def put_back_written(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[int, ...]]:
    """Put back what a loss has written to the first of each pair, and return the shapes of these."""
    changed = [(mine, clone) for mine, clone in pairs if not _equal(mine, clone)]
    for mine, clone in changed:
        mine.data.copy_(clone)
    return [tuple(mine.shape) for mine, _ in changed]


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(((one == other) | (one != one)).all())
