"""docs/optimizers.md: the table is what the package says, and the example runs and is exact."""

import optimizer_table
import torch
from checks import assert_exact, call, expect
from pages import blocks
from torch_optimizer_rows import VERDICTS
from torch_table import REFUSED, world_of, wrapped

import unroll_wrap.optimizers.read


def test_the_table_is_up_to_date():
    """Otherwise: python docs/tools/optimizer_table.py --write."""
    lines = optimizer_table.documented(optimizer_table.DOCS.read_text(encoding="utf-8")).splitlines()
    # An older torch has fewer.
    older = set(optimizer_table.classes(torch.optim))
    here = [line for line in lines if not line.startswith("| `torch.optim.") or line.split("`")[1] in older]
    assert here == optimizer_table.table().splitlines()
    assert len(here) > len(lines) - 3


def test_every_class_has_the_verdict_that_the_tests_expect():
    """Rules for all of torch's but two; for torch_optimizer see its own tests."""
    rows = [optimizer_table.row(*one) for one in optimizer_table.ALL().items()]
    assert len(rows) == len(optimizer_table.classes(torch.optim)) + 30
    for row in rows:
        package, name = row.name.rsplit(".", 1)
        if package == "torch.optim":
            assert row.verdict == ("refused" if name in REFUSED else "exact rule"), row
        else:
            assert row.verdict == next(v for k, v in VERDICTS.items() if k.split("-")[0] == name), row
        assert row.why or row.verdict == "traced"


def test_a_change_shows():
    """The control."""
    text = f"a {optimizer_table.BEGIN}\nold\n{optimizer_table.END} b"
    assert optimizer_table.documented(text) == "old"
    assert optimizer_table.documented(optimizer_table.written(text)) == optimizer_table.table()
    assert optimizer_table.written(text).startswith("a ") and optimizer_table.written(text).endswith(" b")


def test_the_worked_example_runs_and_is_exact(monkeypatch):
    """Its rule against its own optimizer, by the oracle."""
    monkeypatch.setattr(unroll_wrap.optimizers.read, "RULES", dict(unroll_wrap.optimizers.read.RULES))
    text = optimizer_table.DOCS.read_text(encoding="utf-8")
    names = {"__name__": "optimizers"}
    found = list(blocks(text))
    assert found
    for line, code in found:
        exec(compile("\n" * (line - 1) + code, str(optimizer_table.DOCS), "exec"), names)
    assert all(p.grad.abs().max() > 0 for p in names["G"].parameters())
    world = world_of(names["Drag"])
    assert unroll_wrap.optimizers.read.rule_of(world.optimizer) is names["DragRule"]
    assert_exact(call(world, wrapped(world, steps=3)), world, expect(world, steps=3), gap=1e-3)
