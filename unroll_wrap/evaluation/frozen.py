"""Find frozen parameters that a loss never writes to, which need no copy for every evaluation: they may be large."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn


def left_alone(carried: Sequence[Tensor], clones: Mapping[int, Tensor], shared: Sequence[Sequence[Tensor]]) -> set[int]:
    """Return the positions of the frozen parameters that the first loss has not written to.

    Args:
        carried: the user's tensor objects, which hold cloned contents now.
        clones: tensors that hold the original contents now, by position in ``carried``.
        shared: pairs of tensors that share memory, of which a loss may write to none.

    Raises:
        ValueError: it has.
    """
    together = {id(t) for pair in shared for t in pair}
    unwritten: set[int] = set()
    for i, clone in clones.items():
        mine = carried[i]
        frozen = isinstance(mine, nn.Parameter) and mine._version == 0
        if not (frozen or id(mine) in together):
            continue
        if _equal(mine, clone):
            unwritten |= {i} if frozen else set()
        elif id(mine) in together:
            raise ValueError(
                f"d_loss writes to a tensor of the discriminator, of shape {tuple(mine.shape)}, that lies in the same "
                "memory as another: a real step changes both, and an unroll would change one. Give each a copy "
                "(.clone())."
            )
    return unwritten


def put_back_written(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[int, ...]]:
    """Restore the first tensor of each pair from the second where they differ, and return the shapes of these."""
    changed = [(mine, clone) for mine, clone in pairs if not _equal(mine, clone)]
    for mine, clone in changed:
        mine.data.copy_(clone)
    return [tuple(mine.shape) for mine, _ in changed]


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(((one == other) | (one != one)).all())
