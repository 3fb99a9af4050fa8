"""Copies the tables of results/ into the page of the experiments, each under the comment that names it.

python docs/tools/readme_tables.py --write
"""

import re

from pages import ROOT, command

PAGE = ROOT / "examples" / "README.md"
PLACE = re.compile(r"<!-- (results/\S+\.md) -->\n.*?<!-- end -->", re.DOTALL)
NOT_YET = "Not run yet."


def table(path):
    """What a run of the experiment wrote, or that there was none."""
    return path.read_text(encoding="utf-8").strip() if path.exists() else NOT_YET


def written(text, root=ROOT):
    """The page with every table as its file has it."""
    return PLACE.sub(lambda place: f"<!-- {place[1]} -->\n{table(root / place[1])}\n<!-- end -->", text)


if __name__ == "__main__":
    command(__doc__, PAGE, written)
