"""Several processes: all cases of tests/support/ranks on 4 and on 2 of them, over Gloo on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import ranks
import torch

ROOT = Path(__file__).parents[2]
SUPPORT = ROOT / "tests" / "support"


def test_every_case_on_every_rank(tmp_path, subtests):
    """One test, because to start the processes takes longer than what they are for."""
    paths = [str(ROOT), str(SUPPORT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    process = subprocess.run(
        [sys.executable, "-m", "ranks", tmp_path],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    assert process.returncode == 0, process.stdout
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(4)]
    expected = {(name, size) for name, (sizes, _) in ranks.CASES.items() for size in sizes}
    assert set(found[0]) == expected | {("the last rank ends", size) for size in (2, 4)}
    for name, size in found[0]:
        with subtests.test(f"{name}, {size} ranks"):
            problems = [
                f"rank {rank}: {one[name, size][0]}" for rank, one in enumerate(found[:size]) if one[name, size][0]
            ]
            assert not problems, "\n".join(problems)
