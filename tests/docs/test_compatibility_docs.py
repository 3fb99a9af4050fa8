"""docs/compatibility.md: the tables are those of the rows, and every test that a row names is there."""

import ast
from pathlib import Path

import compatibility_table
from compatibility_rows import EXACT, KNOWN, REFUSED, SECTIONS
from problems import PROBLEMS

ROWS = [row for rows in SECTIONS.values() for row in rows]
TESTS = Path(__file__).parents[1]


def functions(file):
    """The top-level functions of the test file of that name, whichever folder it is in, by name."""
    (path,) = TESTS.rglob(file)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def is_there(test):
    """A problem in the table that test_exact.py goes through; otherwise a test function in its file."""
    if "::" not in test:
        return test in PROBLEMS
    file, name = test.split("::")
    return name.startswith("test_") and name in functions(file)


def test_every_test_that_a_row_names_is_there():
    """And a name that is not there is noticed."""
    assert [test for row in ROWS for test in row.tests if not is_there(test)] == []
    every = functions("test_exact.py")["test_value_and_gradient_are_those_of_real_steps"]
    assert "pytest.mark.parametrize('name', list(PROBLEMS))" in map(ast.unparse, every.decorator_list)
    assert not is_there("no_such_problem") and not is_there("test_exact.py::test_no_such_thing")


def test_the_tables_are_up_to_date():
    """Otherwise: python docs/tools/compatibility_table.py --write."""
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
