"""docs/backwards.md: the example runs."""

from pathlib import Path

from pages import blocks

DOCS = Path(__file__).parents[2] / "docs" / "backwards.md"


def test_the_example_runs(capsys):
    (line, code), *rest = blocks(DOCS.read_text(encoding="utf-8"))
    assert not rest
    exec(compile("\n" * (line - 1) + code, str(DOCS), "exec"), {"__name__": "backwards"})
    assert "K = 50" in capsys.readouterr().out
