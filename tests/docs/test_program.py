"""The program `unroll_wrap`: its version, its demo, and what it says of a command that is none."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import unroll_wrap
from unroll_wrap.command import main
from unroll_wrap.diagnostics import demo


def ended(*arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return caught.value.code


def test_its_version(capsys):
    assert ended("--version") == 0
    assert capsys.readouterr().out == f"unroll_wrap {unroll_wrap.__version__}\n"


def test_it_is_installed_under_its_name():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert '[project.scripts]\nunroll_wrap = "unroll_wrap.command:main"\n' in text


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("dem",), "demo"),
        (("demo", "--steps", "0"), "is 0: pass a whole"),
        (("demo", "-x"), "-x"),
    ],
)
def test_what_it_does_not_know(arguments, word, capsys):
    assert ended(*arguments) == 2
    assert word in capsys.readouterr().err


def test_no_command(capsys):
    """It says which there are; each says what it does."""
    assert main([]) == 2
    said = capsys.readouterr().out
    assert "doctor" in said and "demo" in said
    for command, word in (("doctor", "bug reports"), ("demo", "ring of Gaussians")):
        assert ended(command, "--help") == 0
        assert word in capsys.readouterr().out


def test_the_demo(capsys):
    """Ten rows, of counts that are measured; the same for the same seed; and the caller's random numbers stay."""
    state = torch.get_rng_state()
    tables = []
    for seed in ("0", "0", "1"):
        assert main(["demo", "--steps", "2", "--updates", "20", "--seed", seed]) == 0
        tables.append(capsys.readouterr().out)
    assert torch.equal(state, torch.get_rng_state())
    rows = [line.split() for line in tables[0].splitlines()[3:]]
    assert [row[0] for row in rows] == [str(update) for update in range(2, 21, 2)]
    assert all(0 <= int(cell) <= 8 for row in rows for cell in row[1:])
    assert "K = 2" in tables[0]
    assert tables[0] == tables[1]


class Samples(nn.Module):
    """A generator that samples some of the modes of the data."""

    def __init__(self, count):
        super().__init__()
        self.count = count

    def forward(self, z):
        return demo.centers()[: self.count].repeat(len(z) // self.count + 1, 1)[: len(z)] + 0.02 * z[:, :2]


def test_its_modes_are_counted():
    assert [demo.modes(Samples(count)) for count in (1, 3, 8)] == [1, 3, 8]
    real = demo.ring(2000, torch.Generator().manual_seed(0))
    assert demo.modes(lambda z: real) == 8
    assert demo.modes(lambda z: real + 1) == 0


def test_unrolling_is_what_differs():
    """The same weights and data for both: with K = 0 for both, both are the same to the last bit."""
    first, again, other = (list(demo.train(k, 3, 32, seed=0))[-1] for k in (0, 0, 2))
    weights = [torch.cat([p.flatten() for p in G.parameters()]) for G in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.allclose(weights[0], weights[2], rtol=1e-6)


def test_it_runs_as_a_module_too(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["unroll_wrap", "--version"])
    with pytest.raises(SystemExit):
        runpy.run_module("unroll_wrap", run_name="__main__")
    assert unroll_wrap.__version__ in capsys.readouterr().out
