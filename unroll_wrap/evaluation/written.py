"""Find losses that write to parameters, to those that move and to frozen ones.

Frozen parameters that no loss writes to need no copy for every evaluation. They may be large.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ..call.batch import distinct
from ..call.borrowed import have_changed


class Written:
    """A comparison of parameters before and after each loss of one call.

    Args:
        loss: the name of the returned loss, which may run after several steps; all other runs have names of their own,
            and a name that comes again is that of a replay.
        again: the name of a loss that is run for a comparison with an inner step.
        at_once: whether to raise after the loss, with the shapes. In later calls this waits for the end of the call,
            so that the host does not wait for the device in each step.
        from_start: whether the derivative passes by the parameters before the first run. Else that run may write to
            them: they depend on nothing, and a layer may initialise itself from the first batch that it sees. In a
            first call it may do so in any case.
    """

    def __init__(self, loss: str, again: str, at_once: bool, from_start: bool) -> None:
        self._loss = loss
        self._at_once = at_once
        self._from_start = from_start
        self._later: list[tuple[str, str, Tensor]] = []  # Losses, the player, and whether they have written.
        self._again = again
        self._seen: set[str] = set()

    def values(self, params: Sequence[Tensor]) -> list[Tensor]:
        """Return copies of the parameters, or of the vectors that they are packed in."""
        return [p.detach().clone() for p in self._packed(params)]

    def check(self, name: str, before: Sequence[Tensor], params: Sequence[Tensor], who: str) -> None:
        """Raise if a loss has changed parameters since ``before``, which the first one may do."""
        first = not self._seen
        if (name in self._seen and name != self._loss) or name == self._again:
            return
        self._seen.add(name)
        if first and not self._from_start:
            return
        pairs = list(zip(before, self._packed(params), strict=True))
        if not self._at_once:
            self._later += [(name, who, (b != p).any()) for b, p in pairs]
        elif shapes := [tuple(b.shape) for b, p in pairs if have_changed(b, p)]:
            raise _writes(name, who, f", of shapes {shapes[:4]}")

    def changed(self) -> list[Tensor]:
        """Return for each loss that ``check`` has not raised for at once whether it has written."""
        return [changed for *_, changed in self._later]

    def finish(self, changed: Sequence[float], params: Sequence[Tensor]) -> None:
        """Raise as ``check`` does, given the values of ``changed`` and the parameters before the call."""
        found = [(name, who) for (name, who, _), yes in zip(self._later, changed, strict=True) if yes]
        # NaN differs from itself.
        if found and not any(p.isnan().any() for p in params):
            name, who = found[0]
            raise _writes(name, who)

    def _packed(self, params: Sequence[Tensor]) -> Sequence[Tensor]:
        if self._at_once:
            return params
        return distinct(p if p._base is None else p._base for p in params)


def _writes(name: str, who: str, shapes: str = "") -> ValueError:
    return ValueError(
        f"{name} writes to parameters of {who}{shapes}: no derivative passes through that, so the second term of "
        "Eq. 12 would be wrong. Clip or scale parameters after each step with param_transform=, or compute with "
        "changed copies of them (torch.func.functional_call). What only a layer writes to, such as the vector of a "
        "spectral norm of your own, belongs in a buffer (register_buffer). With stop_gradient=True it may stay."
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
