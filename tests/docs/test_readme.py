"""The README's Python runs, block after block, as one session."""

import re

import readme_tables
import torch
from pages import README, blocks


def test_every_block_runs(tmp_path, monkeypatch):
    """In order, sharing names, none skipped."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    found = list(blocks(README.read_text(encoding="utf-8")))
    assert found
    names = {"__name__": "readme"}
    for line, code in found:
        exec(compile("\n" * (line - 1) + code, str(README), "exec"), names)  # tracebacks show README lines
    assert "UnrolledGeneratorLoss" in names


def test_blocks_are_found():
    """The control: other languages are left out, and a block that fails is not passed over."""
    text = "a\n```bash\nls\n```\n```python\n1 / 0\n```\n"
    assert list(blocks(text)) == [(6, "1 / 0\n")]
    inside = "1. a\n\n   ```python\n   if a:\n       b\n   ```\n"
    assert list(blocks(inside)) == [(4, "if a:\n    b\n")]


def test_it_is_a_screen_and_says_what_it_costs():
    """At most 1,200 words; the caveat of the Sigmoid before the first code; every section in the list of contents."""
    text = README.read_text(encoding="utf-8")
    assert len(text.split()) <= 1200
    assert 0 < text.index("end in a Sigmoid") < text.index("```diff")
    sections = re.findall(r"^## (.+)$", text, re.MULTILINE)
    listed = re.findall(r"\[([^\]]+)\]\(#[a-z-]+\)", text[: text.index("## ")])
    assert [one for one in sections if one not in ("Licence", *listed)] == [] and len(listed) > 5


def test_the_tables_are_those_of_the_results(tmp_path):
    """Otherwise: python docs/tools/readme_tables.py --write. And a table that has changed is noticed."""
    text = readme_tables.PAGE.read_text(encoding="utf-8")
    assert readme_tables.written(text) == text
    assert len(readme_tables.PLACE.findall(text)) == 8
    assert readme_tables.written(text, root=tmp_path) != text


def test_the_summary_has_the_numbers_of_the_tables():
    """Each mean with its error; and the ring's modes, seed by seed."""
    text = readme_tables.PAGE.read_text(encoding="utf-8")
    summary = text[text.index("**In numbers**") : text.index("**When does")]
    tables = "".join(readme_tables.table(README.parent / place) for place in readme_tables.PLACE.findall(text))
    found = re.findall(r"[\d.]+ ± [\d.]+", summary)
    assert len(found) == 12
    assert [cell for cell in found if f" {cell} " not in tables] == []
    for K, modes in ((0, "1, 0, 0"), (10, "8, 8, 8")):
        assert ", ".join(re.findall(rf"^\| +{K} \| +\d \| (\d) of 8", tables, re.MULTILINE)) == modes
        assert f" {modes} " in summary


def test_every_link_leads_somewhere():
    """Within the repository, pictures too."""
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", README.read_text(encoding="utf-8"))
    inside = [link for link in links if "://" not in link]
    assert len(inside) > 15
    assert [link for link in inside if not (README.parent / link).exists()] == []
