"""The tables in docs/compatibility.md, from `compatibility_rows.py`.

python docs/tools/compatibility_table.py            # print them
python docs/tools/compatibility_table.py --write    # put them into docs/compatibility.md
"""

import argparse
from pathlib import Path

from compatibility_rows import SECTIONS

DOCS = Path(__file__).parents[2] / "docs" / "compatibility.md"
BEGIN = "<!-- tables: written by docs/tools/compatibility_table.py -->"
END = "<!-- tables: end -->"


def shown(test: str) -> str:
    return f"`{test}`" if "::" in test else f"problem `{test}`"


def tables() -> str:
    """In Markdown, a section each."""
    lines = []
    for title, rows in SECTIONS.items():
        lines += [f"## {title}", "", "| | | | shown by |", "|---|---|---|---|"]
        lines += [
            f"| {row.what} | {row.verdict} | {row.how} | {', '.join(shown(test) for test in row.tests)} |"
            for row in rows
        ]
        lines.append("")
    return "\n".join(lines).strip()


def documented(text: str) -> str:
    """What stands between the two marks."""
    return text.split(BEGIN)[1].split(END)[0].strip()


def written(text: str) -> str:
    """The text with the tables as they are now."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{rest.split(END)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help=f"put them into {DOCS.name}")
    if parser.parse_args().write:
        DOCS.write_text(written(DOCS.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(tables())


if __name__ == "__main__":
    main()
