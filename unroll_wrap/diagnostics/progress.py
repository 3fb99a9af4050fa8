"""Show on a terminal how far a long check is."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_PATIENCE = 2.0  # Seconds before anything is shown.


@contextmanager
def counting(who: str, what: str) -> Iterator[Callable[[], None]]:
    """Yield a function that counts one more of ``what``, and shows count and seconds once the work takes long.

    The line is on stderr and is gone at the end. Where stderr is no terminal, nothing is shown.
    """
    began, count, shown = time.monotonic(), 0, False

    def one_more() -> None:
        nonlocal count, shown
        count += 1
        seconds = time.monotonic() - began
        if seconds > _PATIENCE and sys.stderr.isatty():
            sys.stderr.write(f"\r{who}: {count} {what}, {seconds:.0f} s")
            sys.stderr.flush()
            shown = True

    try:
        yield one_more
    finally:
        if shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
