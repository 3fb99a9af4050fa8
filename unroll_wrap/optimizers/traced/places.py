"""Name the place of an object inside an optimizer, as a user would write it."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any


class Places:
    """The place of every object: the object that led to it, and its name there."""

    def __init__(self) -> None:
        self.above: list[tuple[int, str]] = []
        self.entries: list[int] = []

    def add(self, above: int, name: str, entry: int) -> int:
        """Add an object, whose first entry in the key is ``entry``, and return its number."""
        self.above.append((above, name))
        self.entries.append(entry)
        return len(self.above) - 1

    def path(self, entry: int) -> str:
        """Return the path of the object that an entry of the key belongs to."""
        return self.of(bisect_right(self.entries, entry) - 1)

    def of(self, number: int) -> str:
        """Return the path of an object by its number, as a user would write it."""
        names = []
        while number > 0:
            number, name = self.above[number]
            names.append(name)
        return "".join(reversed(names)) or " itself"


def named(one: Any, children: Sequence[Any], attributes: bool, position: dict[int, int]) -> list[tuple[str, Any]]:
    """Return the parts of an object, each with the name under which a user finds it there.

    Those of a dict are keys and values in turn; its values have names with a dot if they are ``attributes``.
    """

    def name(key: Any) -> str:
        if attributes:
            return f".{key}"
        return f"[p{position[id(key)]}]" if id(key) in position else f"[{key!r:.40}]"

    if isinstance(one, dict):
        return [(name(children[i - 1]) if i % 2 else "", c) for i, c in enumerate(children)]
    if isinstance(one, (list, tuple)):
        return [(f"[{i}]", c) for i, c in enumerate(children)]
    return [("", c) for c in children]
