"""The pages: every block of Python runs, every message of the package is explained, every public name is there."""

import re

import pytest
import torch
from messages import PACKAGE, messages
from pages import DOCS, blocks

# The others have tests of their own: test_optimizer_docs.py, test_backward_docs.py, and, beside the other libraries,
# hosts/test_hosts.py.
PAGES = sorted({page.name for page in DOCS.glob("*.md")} - {"optimizers.md", "backwards.md", "coming-from.md"})


@pytest.mark.parametrize("name", PAGES)
def test_every_block_runs(name, tmp_path, monkeypatch):
    """In order, a session a page."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    page = DOCS / name
    names = {"__name__": page.stem}
    for line, code in blocks(page.read_text(encoding="utf-8")):
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), names)


@pytest.mark.parametrize("page", [*sorted(DOCS.glob("*.md")), DOCS.parent / "README.md"], ids=lambda page: page.name)
def test_code_fits_the_page(page):
    """88 columns, which a page shows without scrolling; diffs of the recipes are as wide as their scripts."""
    code = "".join(code for _, code in blocks(page.read_text(encoding="utf-8")))
    assert [line for line in code.splitlines() if len(line) > 88] == []


def headings(text):
    """The messages that the page explains."""
    return re.findall(r"^#### `(.*)`$", text, re.MULTILINE)


def strings():
    """Every text in the source, its lines joined, blanks as "…"."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        source = re.sub(r'"\s*\n\s*f?"', "", path.read_text(encoding="utf-8"))
        found.append(re.sub(r"\{[^{}]*(\{[^{}]*\}[^{}]*)*\}", "…", source))
    return found


def explained(message, titles):
    return any(title in message for title in titles)


def test_every_message_is_explained():
    """And the control: one that is not in the page is noticed."""
    titles = headings((DOCS / "troubleshooting.md").read_text(encoding="utf-8"))
    assert len(titles) == len(set(titles)) > 50
    assert {place: text for place, text in messages().items() if not explained(text, titles)} == {}
    assert not explained("The moon is made of …. Pass cheese.", titles)


def test_every_explained_message_is_in_the_source():
    """Word by word: a message that has changed must change here too."""
    titles, sources = headings((DOCS / "troubleshooting.md").read_text(encoding="utf-8")), strings()
    assert [title for title in titles if not any(title in source for source in sources)] == []


def test_messages_are_found():
    """The control of both: in every file that raises."""
    found = messages()
    assert len(found) > 45
    raising = {"call/optimizer.py", "unrolling/unroll.py", "diagnostics/differentiated.py", "optimizers/read.py"}
    assert {place.split(":")[0] for place in found} >= raising
