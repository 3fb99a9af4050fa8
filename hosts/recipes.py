"""Writes the recipes into docs/hosts.md: the diffs of the loops here and in tests/exact/loops, and whole files.

python hosts/recipes.py --write
"""

import re
import sys
from pathlib import Path

HOSTS = Path(__file__).parent
LOOPS = HOSTS.parent / "tests" / "exact" / "loops"
DOCS = HOSTS.parent / "docs" / "hosts.md"
SCRIPTS = {
    name: folder / f"{name}.py"
    for folder, names in {
        LOOPS: ("flat_script", "lightning"),
        HOSTS / "loops": ("ignite", "accelerate", "fabric", "torchgan"),
    }.items()
    for name in names
}
FILES = ("lightning_callback", "ignite_handler", "fid")


def listing(name):
    """A file as it is."""
    return f"```py\n{(HOSTS / f'{name}.py').read_text(encoding='utf-8').strip()}\n```"


def recipe(host):
    """Its diff with the lines around each change, and dots for what lies between."""
    text = SCRIPTS[host].with_suffix(".diff").read_text(encoding="utf-8")
    parts = re.split(r"^@@.*@@\n", text, flags=re.MULTILINE)[1:]
    # Blank lines at the ends of a part are those of the file, and stand for nothing here.
    shown = "\n ...\n".join(re.sub(r"^(?: \n)+|(?:\n )+\Z", "", part.rstrip("\n")) for part in parts)
    return "```diff\n" + "\n".join(line.rstrip() for line in shown.splitlines()) + "\n```"


def marks(host):
    return f"<!-- {host}: written by hosts/recipes.py -->", f"<!-- {host}: end -->"


def documented(text, host):
    """What the page says now."""
    begin, end = marks(host)
    return text.split(begin)[1].split(end)[0].strip()


def written(text):
    """The page with every recipe up to date."""
    for name in (*SCRIPTS, *FILES):
        begin, end = marks(name)
        head, rest = text.split(begin)
        code = recipe(name) if name in SCRIPTS else listing(name)
        text = f"{head}{begin}\n{code}\n{end}{rest.split(end)[1]}"
    return text


if __name__ == "__main__":
    text = written(DOCS.read_text(encoding="utf-8"))
    if sys.argv[1:] == ["--write"]:
        DOCS.write_text(text, encoding="utf-8")
    else:
        print(text)
