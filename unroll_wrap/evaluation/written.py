"""Find losses that write to parameters, to those that move and to frozen ones.

Frozen parameters that no loss writes to need no copy for every evaluation. They may be large.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from ..call.borrowed import differs


class Writes(NamedTuple):
    """The versions of the parameters in a call whose first evaluation has written to them.

    A layer may initialise itself from the first batch that it sees. After a real step it has done so.
    """

    versions: tuple[int, ...]


class Written:
    """A comparison of parameters before and after each loss of one call.

    Args:
        owned: the parameters that move.
        earlier: what an earlier call has found, if it has found anything.
        again: the name of a loss that is run for a comparison with an inner step.
    """

    def __init__(self, owned: Sequence[Tensor], earlier: Writes | None, again: str) -> None:
        self.found: Writes | None = None  # What this call has found, if anything.
        self._now = Writes(tuple(p._version for p in owned))
        self._excused = earlier in (None, self._now)
        self._again = again
        self._seen: set[str] = set()

    def values(self, params: Sequence[Tensor]) -> list[Tensor]:
        """Return copies of the parameters."""
        return [p.detach().clone() for p in params]

    def check(self, name: str, before: Sequence[Tensor], params: Sequence[Tensor], who: str) -> None:
        """Raise if a loss has changed parameters since ``before``, unless a layer may have initialised itself."""
        first = not self._seen
        if name in self._seen or name == self._again:
            return
        self._seen.add(name)
        if not (shapes := [tuple(b.shape) for b, p in zip(before, params, strict=True) if differs(b, p)]):
            return
        if first and self._excused:
            self.found = self._now
            return
        raise ValueError(
            f"{name} writes to parameters of {who}, of shapes {shapes[:4]}: no derivative passes through that, so the "
            "second term of Eq. 12 would be wrong. Clip or scale parameters after each step with param_transform=, or "
            "compute with changed copies of them (torch.func.functional_call). With stop_gradient=True it may stay."
        )


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
                f"A loss of a step writes to a tensor of shape {tuple(mine.shape)} that lies in the same memory as "
                "another: a real step changes both, and an unroll would change one. Give each a copy (.clone())."
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
