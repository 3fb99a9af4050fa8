"""One progress bar for a whole grid, in a terminal or in a log."""

import sys
from typing import TextIO

from tqdm import tqdm


class _Lines:
    """Turns tqdm's carriage returns into lines, so that a log file or a CI page stays readable."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        text = text.strip("\r\n ")
        if text:
            self.stream.write(text + "\n")

    def flush(self) -> None:
        self.stream.flush()


def progress_bar(total: float, description: str) -> tqdm:
    """A bar over `total` units of work, with the time that it took and the time left.

    Outside a terminal it prints a line every 15 seconds.

    Args:
        total: Work to do, in units of equal cost, so that the time left is honest for runs of unequal cost.
        description: Shown before the bar.

    Returns:
        The bar; call `update` with the work done and `set_postfix_str` with the state to show.
    """
    terminal = sys.stderr.isatty()
    bar = " {bar:20}" if terminal else ""
    return tqdm(
        total=total,
        desc=description,
        bar_format=f"{{desc}} {{percentage:3.0f}}%{bar} {{elapsed}}, {{remaining}} left{{postfix}}",
        file=sys.stderr if terminal else _Lines(sys.stderr),  # pyright: ignore[reportArgumentType]
        mininterval=0.2 if terminal else 15,
        # Otherwise tqdm waits for as many units as its fastest moment brought, and slow runs show nothing.
        miniters=0,
        dynamic_ncols=terminal,
        smoothing=0.1,
    )
