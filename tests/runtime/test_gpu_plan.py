"""The plan of ``make gpu``, with commands that the CPU has and a small budget."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def gpu():
    spec = importlib.util.spec_from_file_location("gpu_plan", ROOT / "benchmarks" / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_plan"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["gpu_plan"]


def python(gpu, name, code, seconds=60.0):
    return gpu.Part(name, (sys.executable, "-c", code), seconds, {"UNROLL_WRAP_DEVICE": "cpu"})


def test_every_part_is_there_and_short(gpu, tmp_path):
    parts = gpu.plan("cuda", tmp_path)
    assert len({p.name for p in parts}) == len(parts)
    assert all(p.seconds <= 600 for p in parts)
    files = [c for p in parts for c in p.command if c.endswith(".py")]
    assert files and all((ROOT / f).exists() for f in files)
    assert [p.seconds for p in parts] == sorted(p.seconds for p in parts)


def test_a_stopped_plan_goes_on_where_it_was(gpu, tmp_path, capfd):
    count = "import pathlib; p = pathlib.Path({!r}); p.write_text((p.read_text() if p.exists() else '') + 'x')"
    seen, flag = tmp_path / "seen", tmp_path / "flag"
    parts = [
        python(gpu, "first", count.format(str(seen))),
        python(gpu, "fails once", f"import sys, pathlib; sys.exit(not pathlib.Path({str(flag)!r}).exists())"),
        python(gpu, "device", "import os; print(os.environ['UNROLL_WRAP_DEVICE'])"),
    ]
    assert gpu.go_on(parts, tmp_path, 60.0) == {"first": "done", "fails once": "failed with 1", "device": "done"}
    assert (tmp_path / "device.txt").read_text() == "cpu\n"
    flag.touch()
    assert set(gpu.go_on(parts, tmp_path, 60.0).values()) == {"done"}
    assert seen.read_text() == "x"
    gpu.go_on(parts, tmp_path, 60.0, again=True)
    assert seen.read_text() == "xx"


def test_a_budget_ends(gpu, tmp_path):
    parts = [python(gpu, "long", "import time; time.sleep(60)", 0.5), python(gpu, "quick", "pass")]
    assert gpu.go_on(parts, tmp_path, 60.0) == {"long": "out of time after 0 s", "quick": "done"}
    assert gpu.go_on(parts, tmp_path, 0.0) == {"long": "out of time after 0 s", "quick": "done"}
    assert gpu.go_on([python(gpu, "new", "pass")], tmp_path, 0.0) == {"new": "waiting"}
