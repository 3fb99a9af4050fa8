"""`python -m unroll_wrap doctor`: what it says, what it returns, and that it says it when something is wrong."""

import runpy
import sys

import pytest
import torch

from unroll_wrap import Store, __version__
from unroll_wrap.diagnostics import doctor


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["unroll_wrap", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("unroll_wrap", run_name="__main__")
    return ended.value.code


def test_a_machine_where_all_is_well(monkeypatch, capsys):
    """Versions, every optimizer of torch's with its verdict, every backward, the report of `verify`; exit 0."""
    state = torch.get_rng_state()
    assert run(monkeypatch, "doctor") == 0
    assert torch.equal(state, torch.get_rng_state())
    said = capsys.readouterr().out
    for word in (__version__, torch.__version__, "cpu", "Adam", "LBFGS (refused: it evaluates", "all is well"):
        assert word in said
    assert len([line for line in said.splitlines() if line.endswith("works")]) == len(doctor.BACKWARDS)
    assert "unroll_wrap.verify: passed" in said


class Half(Store):
    """A backward that returns half of what it should."""

    def tape(self, unroll, first, steps):
        tape = super().tape(unroll, first, steps)
        step = tape.pullback
        tape.pullback = lambda k, cotangent: step(k, [b._replace(params=b.params / 2) for b in cotangent])
        return tape


def test_a_backward_that_is_wrong(monkeypatch, capsys):
    """The control: it is named, the end says so, exit 1."""
    monkeypatch.setattr(doctor, "BACKWARDS", {"Store()": {}, "Half()": {"backward": Half()}})
    assert run(monkeypatch, "doctor") == 1
    said = capsys.readouterr().out
    assert "Half()              The derivative is not that of real steps" in said
    assert "something is wrong: please report all of this" in said


def test_another_command(monkeypatch, capsys):
    """The one there is, is named."""
    assert run(monkeypatch, "docter") == 2
    assert "doctor" in capsys.readouterr().err
