"""Loops in the shape of well-known code: at most six lines change, the result is exact, K=0 is the loop as it was."""

import runpy
from pathlib import Path

import pytest
import torch
from audit import CALL, Audit, changed_lines
from patches import before_and_after, diff_of, patched

from unroll_wrap import UnrolledGeneratorLoss

LOOPS = Path(__file__).parent / "loops"
NAMES = sorted(path.stem for path in LOOPS.glob("*.py"))


@pytest.fixture(autouse=True)
def in_double():
    """The scripts name no dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def script(tmp_path):
    """Runs a loop as it was or as it is after its diff, and returns its globals."""

    def run(name, kind):
        for when, text in zip(("before", "after"), before_and_after(LOOPS / f"{name}.py"), strict=True):
            (tmp_path / f"{name}_{when}.py").write_text(text, encoding="utf-8")
        return runpy.run_path(str(tmp_path / f"{name}_{kind}.py"))

    return run


def test_there_are_eight():
    """One for each kind of loop."""
    assert len(NAMES) == 8
    assert sorted(path.stem for path in LOOPS.glob("*.diff")) == NAMES


def test_a_diff_of_another_text_is_refused():
    """Lines are taken away, put in and left, from the first to the last; a line that is another one is an error."""
    diff = "@@ -2,3 +2,3 @@\n b\n-c\n+C\n \n"
    assert patched("a\nb\nc\n\ne\n", diff) == "a\nb\nC\n\ne\n"
    for name in NAMES:
        before, after = before_and_after(LOOPS / f"{name}.py")
        assert patched(before, diff_of(before, after)) == after != before
    for other in ("a\nB\nc\n\ne\n", "a\nb\nc\n", "b\nc\n\ne\n"):
        with pytest.raises(ValueError, match="Write the diff anew"):
            patched(other, diff)


@pytest.mark.parametrize("name", NAMES)
def test_at_most_six_lines_change(name):
    """The import, the constructor, and the generator's loss."""
    before, after = before_and_after(LOOPS / f"{name}.py")
    assert 3 <= changed_lines(before, after) <= 6
    # The control: a line more in each place is seen.
    assert changed_lines(before, after.replace("Unrolled", "further\nUnrolled")) > changed_lines(before, after)


@pytest.mark.parametrize("name", NAMES)
def test_no_steps_are_the_loop_as_it_was(name, script, monkeypatch):
    """K=0: after all iterations the generator is the same to the last bit; and with K=5 it is not."""
    trained = {}
    for kind, steps in (("before", None), ("after", 0), ("after", 5)):
        monkeypatch.setattr(UnrolledGeneratorLoss, "__call__", lambda *args, k=steps, **o: CALL(*args, steps=k, **o))
        trained[kind, steps] = script(name, kind)["result"].state_dict()
    plain, zero, five = trained.values()
    assert all(torch.equal(plain[key], zero[key]) for key in plain)
    assert not all(torch.allclose(plain[key], five[key], rtol=1e-6) for key in plain)


@pytest.mark.parametrize("name", NAMES)
def test_the_loop_after_is_exact(name, script, monkeypatch):
    """Value to 1e-12 and slopes to 1e-7 in the middle of training, the first term alone told apart, verify passes."""
    audit = Audit(name)
    monkeypatch.setattr(UnrolledGeneratorLoss, "__call__", lambda *args, **options: audit(*args, **options))
    script(name, "after")
    assert audit.done
