"""The pages of the repository as texts: where they are, and the blocks of Python in one."""

import re
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"


def blocks(text):
    """The ```python blocks with the line each starts on, those within lists too, without their indentation."""
    for match in re.finditer(r"^( *)```python\n(.*?)^\1```", text, re.DOTALL | re.MULTILINE):
        yield text[: match.start()].count("\n") + 2, dedent(match.group(2))
