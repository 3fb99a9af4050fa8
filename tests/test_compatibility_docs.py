"""docs/compatibility.md: the tables are those of the rows, and every test that a row names is there."""

import io
import os
from contextlib import redirect_stdout

import compatibility_table
import pytest
from compatibility_rows import EXACT, KNOWN, REFUSED, SECTIONS
from problems import PROBLEMS

ROWS = [row for rows in SECTIONS.values() for row in rows]
NAMED = sorted({node for row in ROWS for test in row.tests for node in compatibility_table.node_ids(test)})


class Collected:
    """What pytest finds, without running it."""

    def __init__(self):
        self.ids = set()

    def pytest_collection_modifyitems(self, items):
        for item in items:
            whole = os.path.basename(item.path) + item.nodeid[item.nodeid.index("::") :]
            self.ids |= {whole, whole.split("[")[0]}


@pytest.fixture(scope="module")
def collected():
    found = Collected()
    folder = os.path.dirname(__file__)
    files = sorted({node.split("::")[0] for node in NAMED})
    with redirect_stdout(io.StringIO()):
        arguments = ["--collect-only", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-c", os.devnull]
        code = pytest.main(
            [*arguments, "--rootdir", folder, *(os.path.join(folder, f) for f in files)], plugins=[found]
        )
    assert code == 0
    return found.ids


def test_every_test_that_a_row_names_is_there(collected):
    """By node id; and a name that is not there is noticed."""
    assert [node for node in NAMED if node not in collected] == []
    assert "test_exact.py::test_value_and_gradient_are_those_of_real_steps[no_such_problem-3]" not in collected


def test_the_tables_are_up_to_date():
    """Otherwise: python tests/compatibility_table.py --write."""
    text = compatibility_table.DOCS.read_text(encoding="utf-8")
    assert compatibility_table.documented(text) == compatibility_table.tables()


def test_every_problem_is_in_a_row():
    """A problem that shows something is said to show it."""
    shown = {test for row in ROWS for test in row.tests}
    assert sorted(set(PROBLEMS) - shown) == ["two_groups"]


def test_the_rows_are_whole():
    """A verdict, a test, a remedy where something is refused; no hazard twice."""
    for row in ROWS:
        assert row.verdict in (EXACT, REFUSED, KNOWN) and row.tests
        assert row.how or row.verdict == EXACT
        assert "|" not in row.what + row.how
    assert len({row.what for row in ROWS}) == len(ROWS)


def test_a_change_shows():
    """The control."""
    text = f"a {compatibility_table.BEGIN}\nold\n{compatibility_table.END} b"
    assert compatibility_table.documented(text) == "old"
    again = compatibility_table.written(text)
    assert compatibility_table.documented(again) == compatibility_table.tables()
    assert again.startswith("a ") and again.endswith(" b")
