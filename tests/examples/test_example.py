"""The ring of Gaussians runs, from the command line, as the README says."""

import pytest
from scripts import run, run_here


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    pytest.importorskip("matplotlib", reason="the examples' extra is not installed")


def test_three_steps(tmp_path):
    """Three updates with K=0 and K=2: exit 0, a table with both, and a figure at the printed path."""
    done = run("mixture_of_gaussians", "--steps", 3, "--unroll", 0, 2, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    figures = [*tmp_path.rglob("*.png"), *tmp_path.rglob("*.pdf"), *tmp_path.rglob("*.svg")]
    assert figures
    assert any(figure.name in done.stdout for figure in figures)
    assert "mode" in done.stdout.lower()


@pytest.mark.parametrize(
    ("options", "word"), [(("--steps", 3, "--unroll", -2), "-2"), (("--steps", 3, "--device", "abacus"), "abacus")]
)
def test_bad_values(tmp_path, options, word):
    """A bad value ends with an error that quotes it, not with a traceback."""
    done = run_here("mixture_of_gaussians", *options, "--out", tmp_path)
    assert done.returncode != 0
    assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_the_moving_picture(tmp_path):
    """The start, and of four updates without a mode the third and the last: three frames."""
    from PIL import Image

    path = tmp_path / "ring.gif"
    done = run("animate_ring", "--steps", 4, "--every", 1, "--out", path)
    assert done.returncode == 0, done.stderr
    with Image.open(path) as picture:
        assert picture.n_frames == 3
