"""Find optimizers whose next step is their first, where that step has a slope that no later one has.

Adam's first step is lr · g / (|g| + eps), close to lr times the sign of g. Its slope is about lr / eps where |g| is
about eps, and almost 0 elsewhere. The same holds for every optimizer that divides by a mean of g² which is g² alone.
"""

from collections.abc import Iterable
from typing import Any

from .family import family, groups_of


def note_on_fresh(optimizers: Iterable[Any]) -> str:
    """Return a note that names the optimizers that divide by a mean of g² and have no state yet; "" if none do."""
    found = [o for one in optimizers for o in family(one) if _divides(o) and not any(getattr(o, "state", {}).values())]
    names = dict.fromkeys(type(o).__name__ for o in found)
    if not names:
        return ""
    return (
        f"{' and '.join(names)} starts from empty state: its first step is g / (|g| + eps), whose slope is 1 / eps "
        "wherever |g| is about eps. Step D once before."
    )


def _divides(optimizer: Any) -> bool:
    """Return whether an optimizer has an eps, which it adds to a denominator to keep it from 0."""
    return any("eps" in group for group in groups_of(optimizer))
