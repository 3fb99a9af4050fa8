"""The tables in docs/compatibility.md, from `compatibility_rows.py`.

python docs/tools/compatibility_table.py            # print the page
python docs/tools/compatibility_table.py --write    # put them into docs/compatibility.md
"""

import pages
from compatibility_rows import SECTIONS
from pages import between, command, put_between

DOCS = pages.DOCS / "compatibility.md"
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
    """What the page says now."""
    return between(text, BEGIN, END)


def written(text: str) -> str:
    """The page as it should be now."""
    return put_between(text, BEGIN, END, f"\n{tables()}\n")


if __name__ == "__main__":
    command(__doc__, DOCS, written)
