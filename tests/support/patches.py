"""A loop and what changes in it, kept as one script and a diff: `NAME.py`, and `NAME.diff` beside it.

python tests/support/patches.py NAME.py CHANGED.py    # writes NAME.diff, from a copy of the script that was changed
"""

import difflib
import re
import sys
from pathlib import Path

HUNK = re.compile(r"@@ -(\d+)(?:,\d+)? \+\d+(?:,\d+)? @@")


def patched(before: str, diff: str) -> str:
    """The text after a unified diff with lines of context.

    Raises:
        ValueError: the diff is not one of this text.
    """
    lines, result, place = before.splitlines(), [], 0
    for line in diff.splitlines():
        if line.startswith(("--- ", "+++ ")):
            continue
        if hunk := HUNK.match(line):
            start = int(hunk[1]) - 1
            result += lines[place:start]
            place = start
        elif line.startswith("+"):
            result.append(line[1:])
        else:
            if place >= len(lines) or lines[place] != line[1:]:
                raise ValueError(f"Line {place + 1} is not {line[1:]!r}. Write the diff anew.")
            if not line.startswith("-"):
                result.append(lines[place])
            place += 1
    return "\n".join(result + lines[place:]) + "\n"


def diff_of(before: str, after: str) -> str:
    """A unified diff with two lines around each change, without the names of files."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=2, lineterm="")
    return "\n".join(list(lines)[2:]) + "\n"


def before_and_after(script: Path) -> tuple[str, str]:
    """The loop as it was, and with the lines of its diff."""
    before = script.read_text(encoding="utf-8")
    return before, patched(before, script.with_suffix(".diff").read_text(encoding="utf-8"))


if __name__ == "__main__":
    script, changed = map(Path, sys.argv[1:])
    texts = (path.read_text(encoding="utf-8") for path in (script, changed))
    script.with_suffix(".diff").write_text(diff_of(*texts), encoding="utf-8")
