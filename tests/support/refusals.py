"""What a refusal is: an error that says what was given, and nothing of the user's has changed."""

import re
import warnings

import pytest
from snapshot import changed, snapshot

from unroll_wrap import is_unrolling

# Which class fits is the package's choice; a warning counts where it is as loud as an error.
REFUSALS = (ValueError, TypeError, RuntimeError, FloatingPointError, NotImplementedError, Warning)


def refused(world, act, *words):
    """`act` raises, every word (a regular expression) is in the message, and nothing of the user's has changed."""
    before = snapshot(world)
    with warnings.catch_warnings(), pytest.raises(REFUSALS) as caught:
        warnings.simplefilter("error")
        act()
    for word in words:
        assert re.search(word, str(caught.value), re.IGNORECASE), f"{word!r} is not in: {caught.value}"
    assert changed(before, snapshot(world)) == []
    assert not is_unrolling()
