"""The notebook's first cell, with a badge that opens it in Colab once pyproject.toml has the repository's address.

python docs/tools/notebook_badge.py    # writes it into the notebook, whose outputs stay
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from hatch_build import NOTEBOOK, badge  # noqa: E402

PATH = ROOT / NOTEBOOK
LINES = re.compile(r"\n\[!\[Open in Colab\].*\n\nIn Colab, run .* first\.\n")


def address():
    """That of the repository, empty as long as there is none."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return re.search(r'^\[tool\.hatch\.metadata\.hooks\.custom\]\naddress = "(.*)"$', project, re.MULTILINE)[1]


def first_cell(text, address):
    """The text of the first cell: its title, the badge if there is an address, and the rest."""
    title, rest = LINES.sub("", text).split("\n", 1)
    if not address:
        return f"{title}\n{rest}"
    install = f"In Colab, run `%pip install git+{address.rstrip('/')}` in a new cell first."
    return f"{title}\n\n{badge(address)}\n\n{install}\n{rest}"


def written(notebook, address):
    """The notebook's text with that cell."""
    found = json.loads(notebook)
    found["cells"][0]["source"] = first_cell("".join(found["cells"][0]["source"]), address).splitlines(keepends=True)
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PATH.write_text(written(PATH.read_text(encoding="utf-8"), address()), encoding="utf-8")
