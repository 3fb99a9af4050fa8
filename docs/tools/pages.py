"""The pages of the repository as texts: where they are, and the blocks of Python in one."""

import argparse
import re
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"


def between(text, begin, end):
    """What stands between two marks."""
    return text.split(begin)[1].split(end)[0].strip()


def put_between(text, begin, end, new):
    """The text with something else between two marks."""
    before, rest = text.split(begin)
    return f"{before}{begin}\n{new}\n{end}{rest.split(end)[1]}"


def command(description, page, written):
    """The command line of a script that writes into a page: print the new page, or with --write put it there."""
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--write", action="store_true", help=f"write {page.name}")
    text = written(page.read_text(encoding="utf-8"))
    if parser.parse_args().write:
        page.write_text(text, encoding="utf-8")
    else:
        print(text)


def blocks(text):
    """The ```python blocks with the line each starts on, those within lists too, without their indentation."""
    for match in re.finditer(r"^( *)```python\n(.*?)^\1```", text, re.DOTALL | re.MULTILINE):
        yield text[: match.start()].count("\n") + 2, dedent(match.group(2))
