"""The pages of the repository as texts: where they are, and the blocks of Python in one."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"


def blocks(text):
    """The ```python blocks with the line each starts on."""
    for match in re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield text[: match.start()].count("\n") + 2, match.group(1)
