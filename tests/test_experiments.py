"""The experiments on MNIST run, resume and refuse from the command line; their metrics give known answers."""

import json
import math
import resource
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib", reason="the examples' extra is not installed")
pytest.importorskip("tensorboard", reason="the examples' extra is not installed")
datasets = pytest.importorskip("sklearn.datasets", reason="the examples' extra is not installed")

ROOT = Path(__file__).parents[1]
SCRIPTS = ["rnn_mnist", "stacked_mnist", "colored_mnist"]
sys.path.append(str(ROOT / "examples"))

from common import metrics  # noqa: E402


@pytest.fixture(scope="session")
def mnist(tmp_path_factory):
    """MNIST's four files, from the small digits that scikit-learn carries: no download, no large file."""
    folder = tmp_path_factory.mktemp("data")
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images, labels = datasets.load_digits(return_X_y=True)
    small = torch.tensor(images).float().view(-1, 1, 8, 8) * (255 / 16)
    large = torch.nn.functional.interpolate(small, size=(20, 20), mode="bilinear")
    large = torch.nn.functional.pad(large, (4, 4, 4, 4)).byte().numpy()
    for name, part in (("train", slice(None, 1500)), ("t10k", slice(1500, None))):
        shape = large[part].shape[0], 28, 28
        (raw / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, *shape) + large[part].tobytes())
        digits = labels[part].astype(np.uint8)
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, len(digits)) + digits.tobytes())
    return folder


def run(script, *options, **keywords):
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{script}.py"), *map(str, options)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        **keywords,
    )


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MPLBACKEND", "Agg")


@pytest.mark.parametrize("script", SCRIPTS)
def test_three_steps(script, mnist, tmp_path):
    """Three updates: a table, a summary that can be repeated, figures and event files."""
    done = run(script, "--preset", "smoke", "--steps", 3, "--data", mnist, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "table.md").read_text() in done.stdout
    assert len(list(tmp_path.glob("*.png"))) == 2
    assert len(list(tmp_path.rglob("events.out.tfevents*"))) == 2
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [(row["unroll"], row["updates"]) for row in summary["runs"]] == [(0, 3), (1, 3)]
    assert {"command", "machine", "versions", "seconds"} <= summary.keys()


@pytest.mark.parametrize("script", SCRIPTS)
def test_resume_bit_for_bit(script, mnist, tmp_path):
    """A run that failed after its second checkpoint ends like one that never did, and a finished one stays."""
    options = ("--preset", "smoke", "--unroll", 1, "--steps", 6, "--save-every", 2, "--data", mnist)
    whole = run(script, *options, "--out", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr

    killed = "import os, signal; from common import checkpoint; save = checkpoint.save\n"
    killed += "def killing(path, config, parts, progress):\n"
    killed += "    save(path, config, parts, progress)\n"
    killed += "    if progress.get('update') == 4: os.kill(os.getpid(), signal.SIGKILL)\n"
    killed += "checkpoint.save = killing\n"
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys; sys.path.insert(0, {str(ROOT / 'examples')!r})\n"
        "if '--multiprocessing-fork' in sys.argv:\n" + "".join(f"    {line}\n" for line in killed.splitlines())
    )
