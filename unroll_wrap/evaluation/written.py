"""Find losses that write to the parameters that move, in the first call of an unrolled loss."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


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

    Attributes:
        found: what this call has found, if anything.
    """

    def __init__(self, owned: Sequence[Tensor], earlier: Writes | None, again: str) -> None:
        self.found: Writes | None = None
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
        if not (shapes := [tuple(b.shape) for b, p in zip(before, params, strict=True) if _differs(b, p)]):
            return
        if first and self._excused:
            self.found = self._now
            return
        raise ValueError(
            f"{name} writes to parameters of {who}, of shapes {shapes[:4]}: no derivative passes through that, so the "
            "second term of Eq. 12 would be wrong. Clip or scale parameters after each step with param_transform=, or "
            "compute with changed copies of them (torch.func.functional_call). With stop_gradient=True it may stay."
        )


def _differs(before: Tensor, now: Tensor) -> bool:
    # What was NaN stays so, which is told elsewhere.
    return bool(((before != now) & (before == before)).any())
