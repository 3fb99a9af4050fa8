"""Every study runs at smoke size: its settings are the ones that its labels say, and its report has them all."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="the examples' extra is not installed")
pytest.importorskip("tensorboard", reason="the examples' extra is not installed")

ROOT = Path(__file__).parents[2]
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
    for folder in ("examples", "research"):
        monkeypatch.syspath_prepend(str(ROOT / folder))


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

    nets = {"noise": 4, "g_hidden": (8,), "d_hidden": (8,)}

    def trained(unroll=2, **changed):
        config = Config(unroll=unroll, updates=6, batch=8, g_lr=1e-2, d_lr=1e-2, **nets, **changed)
        parts = build(config, torch.device("cpu"))
        for _ in train(config, parts, 0, torch.device("cpu")):
            pass
        return torch.cat([p.detach().flatten() for p in parts.G.parameters()])

    # With an ensemble G looks at the past alone, where unrolled steps of D would change nothing.
    like = {"unroll": 0} if "ensemble" in switches else {}
    plain = trained(**like)
    assert torch.equal(trained(**like), plain)
    assert (trained(**switches) - plain).abs().max() > 1e-4


def test_command_line(examples, tmp_path, capsys):
    """Trains what is missing, all in one process; the second time nothing; an unknown study is refused."""
    from ring_studies.command import main

    with pytest.raises(SystemExit, match="2"):
        main(["doubling", "--out", str(tmp_path)])
    refused = capsys.readouterr().err
    assert "doubling" in refused and "second-gradient" in refused
    options = ["delays", "--preset", "smoke", "--seeds", "3", "--steps", "1", "--out", str(tmp_path)]
    assert main([*options, "--workers", "1"]) == 0
    assert (tmp_path / "delays" / "table.md").read_text() in capsys.readouterr().out
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*.pt")}
    assert len(times) == 4
    assert main(options) == 0
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*.pt")}
