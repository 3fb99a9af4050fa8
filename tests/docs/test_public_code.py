"""benchmarks/public_code.py, on a repository made here: its changes by line numbers, its verdict, its refusals."""

import difflib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torchvision
from patches import before_and_after

ROOT = Path(__file__).parents[2]
LOOPS = ROOT / "tests" / "exact" / "loops"


@pytest.fixture(scope="module")
def public_code():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("public_code", ROOT / "benchmarks" / "public_code.py")
    module = sys.modules["public_code"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def git(folder, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.check_output(["git", *who, *arguments], cwd=folder, text=True).strip()


@pytest.fixture
def target(public_code, tmp_path):
    """A loop of tests/exact/loops in a repository of its own, and what makes the loop after of it."""
    before, after = before_and_after(LOOPS / "flat_script.py")
    (tmp_path / "train.py").write_text(before)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "train.py")
    git(tmp_path, "commit", "-q", "-m", "as it was")
    old, new = before.splitlines(), after.splitlines()
    opcodes = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    edits = [public_code.Edit(a + 1, b, "\n".join(new[c:d])) for kind, a, b, c, d in opcodes if kind != "equal"]
    commit = git(tmp_path, "rev-parse", "HEAD")
    return public_code.Target("mine", commit[:7], "train.py", edits, public_code.script())


def test_every_target_takes_at_most_six_lines(public_code):
    """And no two changes of a file meet."""
    assert len(public_code.TARGETS) == 12
    for one in public_code.TARGETS.values():
        assert 3 <= one.changed() <= 6
        ends = [(edit.first, edit.last) for edit in sorted(one.edits)]
        assert all(last < first for (_, last), (first, _) in zip(ends, ends[1:], strict=False))


def test_a_change_is_put_in_and_verified(public_code, target, tmp_path, monkeypatch):
    """The loop after, but for blank lines; and what it prints is verify's own verdict."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["here"])
    # The script puts data of its own in the place of torchvision's, which other tests are to find again.
    monkeypatch.setattr(torchvision.datasets, "MNIST", torchvision.datasets.MNIST)
    monkeypatch.setitem(sys.modules, "mnistm", None)
    wanted = before_and_after(LOOPS / "flat_script.py")[1].splitlines()
    assert [x for x in target.source(tmp_path).splitlines() if x] == [x for x in wanted if x]
    assert target.changed() == 3 + 7  # three lines, and those of the two losses as functions
    verdict = public_code.train(target, tmp_path)
    assert verdict.startswith("passed | ") and float(verdict.split(" | ")[1]) < 1e-2
    # The controls: a loss that is wrong, and one that is never called.
    wrong = [
        edit._replace(lines=edit.lines.replace("D(real), D(fake)", "D(real), D(fake.detach())"))
        for edit in target.edits
    ]
    assert wrong != target.edits
    with pytest.warns(UserWarning):
        assert "FAILED" in public_code.train(target._replace(edits=wrong), tmp_path)
    assert "less than three times" in public_code.train(target._replace(edits=[]), tmp_path)


def test_another_commit_is_refused(target, tmp_path):
    """Line numbers mean nothing there."""
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "later")
    with pytest.raises(SystemExit, match="git checkout it"):
        target.source(tmp_path)
