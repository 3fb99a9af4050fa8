"""The experiments on MNIST run, resume and refuse from the command line."""

import hashlib
import importlib
import json
import os
import pickle
import resource
import signal
import subprocess
import time
from dataclasses import replace

import pytest
import torch
from scripts import EXAMPLES, command, run, run_here

pytest.importorskip("matplotlib", reason="the examples' extra is not installed")
pytest.importorskip("tensorboard", reason="the examples' extra is not installed")
Image = pytest.importorskip("PIL.Image", reason="the examples' extra is not installed")

SCRIPTS = ["rnn_mnist", "stacked_mnist", "colored_mnist"]
SMOKE = ("--preset", "smoke")


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """CIFAR-10's files with 40 images each: coloured noise about a mean for each class."""
    folder = tmp_path_factory.mktemp("data")
    batches = folder / "cifar-10-batches-py"
    batches.mkdir()
    generator = torch.Generator().manual_seed(0)
    for name in ("test_batch", *(f"data_batch_{number}" for number in range(1, 6))):
        labels = torch.arange(40) % 10
        images = 25 * labels[:, None] + torch.randint(30, (40, 3072), generator=generator)
        (batches / name).write_bytes(pickle.dumps({"data": images.byte().numpy(), "labels": labels.tolist()}))
    (batches / "batches.meta").write_bytes(pickle.dumps({"label_names": list("0123456789")}))
    return folder


@pytest.fixture
def unchecked(monkeypatch, tmp_path):
    """torchvision takes any files for CIFAR-10, in every process but those that only watch over others."""
    (tmp_path / "sitecustomize.py").write_text("""
import sys

if "resource_tracker" not in " ".join(sys.orig_argv):
    import torchvision.datasets.cifar

    torchvision.datasets.cifar.check_integrity = lambda *_: True
""")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MPLBACKEND", "Agg")


@pytest.mark.parametrize("script", SCRIPTS)
def test_three_steps(script, mnist, tmp_path):
    """Three updates: the table, a summary from which the runs can be repeated, two figures, events.

    The table says that it means nothing, it fits a terminal, figures have palettes, and every row names its checkpoint.
    """
    done = run_here(script, *SMOKE, "--steps", 3, "--data", mnist, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "table.md").read_text() in done.stdout
    assert len(list(tmp_path.glob("*.png"))) == 2
    assert len(list(tmp_path.rglob("events.out.tfevents*"))) == 2
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [(row["unroll"], row["updates"]) for row in summary["runs"]] == [(0, 3), (1, 3)]
    assert {"command", "machine", "versions", "seconds", "data"} <= summary.keys()
    table = (tmp_path / "table.md").read_text()
    assert "These numbers mean nothing" in table
    assert max(map(len, table.splitlines())) <= 120
    assert "Drawing figures." in done.stderr
    for figure in tmp_path.glob("*.png"):
        with Image.open(figure) as picture:
            assert picture.mode == "P"
    checkpoints = sorted((tmp_path / "runs").glob("*.pt"))
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in checkpoints]
    assert [row["checkpoint_sha256"] for row in summary["runs"]] == digests


@pytest.mark.parametrize("script", [*SCRIPTS, "cifar10"])
def test_two_regimes(script, monkeypatch):
    """On a CPU the paper's rates, and G ahead of D, which are told apart by the rates and by nothing else."""
    monkeypatch.syspath_prepend(EXAMPLES)
    presets = importlib.import_module(script).PRESETS
    ahead, rates, paper = (presets[name].base for name in ("cpu", "cpu-paper-rates", "paper"))
    assert (rates.g_lr, rates.d_lr) == (paper.g_lr, paper.d_lr)
    assert ahead.g_lr / ahead.d_lr > 2 * rates.g_lr / rates.d_lr
    if script != "colored_mnist":
        assert replace(ahead, g_lr=rates.g_lr, d_lr=rates.d_lr) == rates


def test_says_what_it_does_where_nothing_trains(mnist, tmp_path, monkeypatch):
    """A run reports that it loads and that it measures; neither takes back the updates that it has made."""
    monkeypatch.syspath_prepend(EXAMPLES)
    from common import experiment

    states, updates = [], []

    class Bar:
        n = 0

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def unpause(self):
            pass

        def set_postfix_str(self, text, refresh):
            states.append(text)

        def update(self, work):
            updates.append(work)

    monkeypatch.setattr(experiment, "progress_bar", lambda *_: Bar())
    options = (*SMOKE, "--steps", 3, "--unroll", 0, "--data", mnist, "--out", tmp_path)
    assert run_here("colored_mnist", *options).returncode == 0
    assert any(text.endswith("loading") for text in states)
    assert any(text.endswith("measuring") for text in states)
    assert min(updates) >= 0


def test_the_classifier_is_not_sure_of_noise(mnist, tmp_path, monkeypatch):
    """Trained with noise and blots as an eleventh class; without it, it is sure of many of them."""
    monkeypatch.syspath_prepend(EXAMPLES)
    import rnn_mnist
    from common import classifier

    torch.manual_seed(1)
    noise = classifier.noise_and_blots(600, torch.device("cpu"))
    sure = {}
    for name, task in (("eleven", classifier.DIGITS), ("ten", classifier.DIGITS._replace(nothing=None))):
        net, accuracy = classifier.classifier(task, tmp_path / name, mnist, torch.device("cpu"), updates=150)
        assert accuracy > 0.9
        sure[name] = rnn_mnist.measure(net, [noise])
    assert sure["eleven"]["sure"] < 0.01 and sure["eleven"]["sure_classes"] == 0
    assert sure["ten"]["sure"] > 0.04 and sure["ten"]["sure_classes"] > 0


def test_resumes_bit_for_bit(mnist, tmp_path):
    """A command killed outright and resumed ends with the numbers and the weights of one that was left alone.

    The other scripts train and resume by the same lines of common/.
    """
    options = (*SMOKE, "--steps", 8, "--save-every", 1, "--data", mnist, "--unroll", 1)
    left_alone = run_here("colored_mnist", *options, "--out", tmp_path / "whole")
    assert left_alone.returncode == 0, left_alone.stderr

    out = tmp_path / "killed"
    process = subprocess.Popen(command("colored_mnist", *options, "--out", out), start_new_session=True)
    while not list(out.glob("runs/*.pt")):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (path,) = out.glob("runs/*.pt")
    interrupted = torch.load(path)["progress"]["update"]
    assert 0 < interrupted < 8

    refused = run_here("colored_mnist", *options, "--out", out)
    assert refused.returncode == 2
    assert f"{interrupted} of 8" in refused.stderr
    partly = run_here("colored_mnist", *options, "--out", out, "--report")
    assert partly.returncode == 0, partly.stderr
    assert f"Not finished: x0.25-k1-seed0 at {interrupted} of 8 updates." in partly.stdout

    resumed = run_here("colored_mnist", *options, "--out", out, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    one, other = (torch.load(folder / "runs" / path.name) for folder in (tmp_path / "whole", out))
    assert one["progress"]["history"] == other["progress"]["history"]
    torch.testing.assert_close(one["parts"], other["parts"], rtol=0, atol=0)
    assert torch.equal(one["rng"], other["rng"])


@pytest.mark.parametrize(
    ("script", "options", "words"),
    [
        ("stacked_mnist", ("--preset", "huge"), ("huge", "paper")),
        ("stacked_mnist", ("--unroll", -1), ("-1",)),
        ("colored_mnist", ("--size", "1/3"), ("1/3", "1/2")),
        ("rnn_mnist", ("--backward", "guess"), ("guess", "store")),
    ],
)
def test_bad_values(script, options, words, tmp_path):
    refused = run_here(script, *SMOKE, *options, "--out", tmp_path)
    assert refused.returncode == 2
    assert all(word in refused.stderr for word in words)
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("damage", ["cut", "garbled", "not a folder"])
def test_bad_data(damage, mnist, tmp_path):
    """Data that is not MNIST ends the program before anything is trained, and names the folder."""
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file in (mnist / "MNIST" / "raw").iterdir():
        content = file.read_bytes()
        damaged = {"cut": content[:-100], "garbled": b"<html>" + content}.get(damage, content)
        (raw / file.name).write_bytes(damaged)
    data = tmp_path / "data"
    if damage == "not a folder":
        data = tmp_path / "file"
        data.write_text("")
    refused = run_here("colored_mnist", *SMOKE, "--data", data, "--out", tmp_path / "out")
    assert refused.returncode == 2
    assert str(data) in refused.stderr
    assert "--data" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_another_configuration_and_a_full_disk(mnist, tmp_path):
    """Neither costs a finished run."""
    options = (*SMOKE, "--steps", 2, "--data", mnist, "--out", tmp_path)
    first = run_here("colored_mnist", *options, "--unroll", 0)
    assert first.returncode == 0, first.stderr
    (path,) = (tmp_path / "runs").glob("*.pt")
    finished = path.read_bytes()

    refused = run_here("colored_mnist", *options, "--unroll", 0, "--apart")
    assert refused.returncode == 2
    assert "one_batch is True there and False here" in refused.stderr

    # No file may grow beyond 100 kB, which stops a checkpoint as a full disk does.
    full = run(
        "colored_mnist",
        *options,
        *("--unroll", 0, 1),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert full.returncode == 1
    assert "k1-seed0 failed" in full.stderr
    assert "--resume" in full.stderr
    assert "Traceback" not in full.stderr
    assert path.read_bytes() == finished
    assert not list(tmp_path.rglob("*.tmp"))

    again = run_here("colored_mnist", *options, "--unroll", 0, 1)
    assert again.returncode == 0, again.stderr
    assert path.read_bytes() == finished


def test_cifar10(cifar, unchecked, tmp_path, monkeypatch, capsys):
    """The whole command at the smallest scale; then a report that asks for a seed that is not there."""
    monkeypatch.syspath_prepend(EXAMPLES)
    import cifar10

    out = tmp_path / "out"
    options = ["--preset", "smoke", "--data", str(cifar), "--out", str(out)]
    assert cifar10.main([*options, "--workers", "1"]) == 0
    assert (out / "table.md").read_text() in capsys.readouterr().out
    assert {path.stem for path in out.glob("*.png")} == {"curves", "samples", "figure4", "figure5-seed0", "figure6"}
    rows = json.loads((out / "summary.json").read_text())["runs"]
    assert [(row["unroll"], row["updates"]) for row in rows] == [(0, 6), (1, 6)]
    assert sum(row["best_rank"] for row in rows) == pytest.approx(100)
    assert all(0 < row["mse"] < 1 and row["seconds_per_image"] > 0 and row["fid"] > 0 for row in rows)
    # Precision, density and coverage stand only where recall is above 0.05.
    lines = [line.split("|") for line in (out / "table.md").read_text().split("\n\n")[1].splitlines()]
    columns = [cell.strip() for cell in lines[0]]
    for line in lines[2:-1]:
        of = dict(zip(columns, (cell.strip() for cell in line), strict=True))
        hidden = [of[name] == "-" for name in ("precision", "density", "coverage")]
        assert hidden == [float(of["recall"]) <= 0.05] * 3

    monkeypatch.setattr(cifar10, "draw_figures", lambda *_, **__: None)
    monkeypatch.setattr(cifar10, "_draw_like_the_paper", lambda *_: None)
    assert cifar10.main([*options, "--report", "--seeds", "0", "1"]) == 0
    assert "Not finished: k0-seed1 not begun; k1-seed1 not begun." in capsys.readouterr().out
    assert json.loads((out / "summary.json").read_text())["runs"] == rows


def test_shares_of_the_best(monkeypatch):
    """Of four targets K = 0 is best on one, K = 5 on two, and they share the last."""
    monkeypatch.syspath_prepend(EXAMPLES)
    import cifar10

    errors = {0: torch.tensor([1.0, 5, 5, 2]), 5: torch.tensor([2.0, 3, 4, 2]), 10: torch.tensor([9.0, 9, 9, 9])}
    assert cifar10.best_shares(errors) == {0: 37.5, 5: 62.5, 10: 0}


def test_images_that_are_not_cifar10(cifar, tmp_path):
    refused = run("cifar10", "--data", cifar, "--out", tmp_path)
    assert refused.returncode == 2
    assert str(cifar) in refused.stderr
    assert "--data" in refused.stderr
    assert "Traceback" not in refused.stderr
