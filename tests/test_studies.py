"""Every study runs at smoke size: its settings are the ones that its labels say, and its report has them all."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="the examples' extra is not installed")
pytest.importorskip("tensorboard", reason="the examples' extra is not installed")

ROOT = Path(__file__).parents[1]
NAMES = [
    "second-gradient",
    "out-of-equilibrium",
    "steps",
    "inside",
    "shortcuts",
    "averaging",
    "delays",
    "square",
]


@pytest.fixture
def examples(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """One folder for all studies: a setting that several have is trained once."""
    return tmp_path_factory.mktemp("studies")


@pytest.mark.parametrize("name", NAMES)
def test_study(examples, out, name):
    """Two updates of every setting, then the command's report: a row for each, both figures, nothing unfinished."""
    from ring_studies.command import configs, main, run_path
    from ring_studies.studies import STUDIES
    from ring_studies.training import run

    (out / "runs").mkdir(exist_ok=True)
    settings = configs(STUDIES[name], "smoke")
    assert len({run_path(out, config) for config in settings}) == len(settings), "two settings share a file"
    for config in settings:
        path = run_path(out, config)
        if not path.exists():
            run(config, torch.device("cpu"), path, 1, lambda message: None)
    assert main([name, "--preset", "smoke", "--out", str(out), "--report"]) == 0
    table = (out / name / "table.md").read_text()
    assert all(label in table for label in STUDIES[name].rows)
    assert "Not finished" not in table
    assert {"figure.png", "measures.png"} <= {path.name for path in (out / name).iterdir()}
    summary = json.loads((out / name / "summary.json").read_text())
    assert [row["updates"] for row in summary["runs"]] == [2] * len(settings)


def test_every_study_is_tested(examples):
    from ring_studies.studies import STUDIES

    assert sorted(STUDIES) == sorted(NAMES)


@pytest.mark.parametrize(
    "switches",
    [
        {"gradient": "first"},
        {"gradient": "first, averaged"},
        {"backward": "truncate 1"},
        {"inner": "fresh"},
        {"inner": "sgd", "sgd_lr": 0.1},
        {"resample": True},
        {"every": 2},
        {"g_updates": 2},
        {"unroll": 0},
        {"unroll": 0, "ensemble": 2},
        {"square": True},
    ],
)
def test_a_switch_changes_the_training(examples, switches):
    """No setting is another one by mistake: after six updates its generator differs from the plain setting's."""
    from ring_studies.training import Config, build, train

    def trained(unroll=2, **changed):
        config = Config(
            unroll=2, updates=6, noise=4, batch=8, g_hidden=(8,), d_hidden=(8,), g_lr=1e-2, d_lr=1e-2, **changed
        )
        parts = build(config, torch.device("cpu"))
        for _ in train(config, parts, 0, torch.device("cpu")):
            pass
        return torch.cat([p.detach().flatten() for p in parts.G.parameters()])

    # With an ensemble G looks at the past alone, where unrolled steps of D would change nothing.
    like = {"unroll": 0} if "ensemble" in switches else {}
    plain = trained(**like)
    assert torch.equal(trained(**like), plain)
    assert (trained(**switches) - plain).abs().max() > 1e-4


def test_command_line(tmp_path):
    """Trains what is missing in processes of its own, and the second time nothing; an unknown study is refused."""
    script = [sys.executable, str(ROOT / "examples" / "mixture_of_gaussians.py"), "study"]

    def run(*options):
        return subprocess.run([*script, *options], cwd=ROOT, capture_output=True, text=True, timeout=120)

    refused = run("doubling", "--out", str(tmp_path))
    assert refused.returncode == 2
    assert "doubling" in refused.stderr
    assert "second-gradient" in refused.stderr
    options = ("delays", "--preset", "smoke", "--seeds", "3", "--steps", "1", "--workers", "2", "--out", str(tmp_path))
    done = run(*options)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "delays" / "table.md").read_text() in done.stdout
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*.pt")}
    assert len(times) == 4
    assert run(*options, "--report").returncode == 0
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*.pt")}
