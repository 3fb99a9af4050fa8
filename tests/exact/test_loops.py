"""Loops in the shape of well-known code: at most six lines change, the result is exact, K=0 is the loop as it was."""

import runpy
from pathlib import Path

import pytest
import torch
from audit import CALL, Audit, changed_lines

from unroll_wrap import UnrolledGeneratorLoss

LOOPS = Path(__file__).parent / "loops"
NAMES = sorted(path.name.removesuffix("_before.py") for path in LOOPS.glob("*_before.py"))


@pytest.fixture(autouse=True)
def in_double():
    """The scripts name no dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def script(name, kind):
    """Run one, and return its globals."""
    return runpy.run_path(str(LOOPS / f"{name}_{kind}.py"))


def test_there_are_eight():
    """One for each row of the issue."""
    assert len(NAMES) == 8
    assert sorted(path.name.removesuffix("_after.py") for path in LOOPS.glob("*_after.py")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_at_most_six_lines_change(name):
    """The import, the constructor, and the generator's loss."""
    before, after = ((LOOPS / f"{name}_{kind}.py").read_text() for kind in ("before", "after"))
    assert 3 <= changed_lines(before, after) <= 6
    # The control: a line more in each place is seen.
    assert changed_lines(before, after.replace("Unrolled", "further\nUnrolled")) > changed_lines(before, after)


@pytest.mark.parametrize("name", NAMES)
def test_no_steps_are_the_loop_as_it_was(name, monkeypatch):
    """K=0: after all iterations the generator is the same to the last bit; and with K=5 it is not."""
    trained = {}
    for kind, steps in (("before", None), ("after", 0), ("after", 5)):
        monkeypatch.setattr(UnrolledGeneratorLoss, "__call__", lambda *args, k=steps, **o: CALL(*args, steps=k, **o))
        trained[kind, steps] = script(name, kind)["result"].state_dict()
    plain, zero, five = trained.values()
    assert all(torch.equal(plain[key], zero[key]) for key in plain)
    assert not all(torch.allclose(plain[key], five[key], rtol=1e-6) for key in plain)


@pytest.mark.parametrize("name", NAMES)
def test_the_loop_after_is_exact(name, monkeypatch):
    """Value to 1e-12 and slopes to 1e-7 in the middle of training, the first term alone told apart, verify passes."""
    audit = Audit(name)
    monkeypatch.setattr(UnrolledGeneratorLoss, "__call__", lambda *args, **options: audit(*args, **options))
    script(name, "after")
    assert audit.done
