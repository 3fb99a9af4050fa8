"""What a result must carry to be repeated: command, machine, versions; and tables."""

import os
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch


def provenance(device: torch.device) -> dict[str, Any]:
    """Command as typed, machine, versions and date, without the paths of this machine.

    Args:
        device: Where the runs were trained.

    Returns:
        Plain values for JSON.
    """
    machine: dict[str, Any] = {"platform": platform.platform(), "cpu": _cpu_model(), "cores": usable_cores()}
    if device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(device)
    return {
        "command": "python " + shlex.join(_relative(argument) for argument in sys.argv),
        "machine": machine,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def usable_cores() -> int:
    """Cores that this process may run on, fewer than the machine's inside most containers."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table whose columns also line up in a terminal, numbers to the right.

    Args:
        header: Names of the columns.
        rows: Values, printed with `str`.

    Returns:
        The lines of the table, the last one ended.
    """
    cells = [list(header), *([str(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    padded = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in cells]
    lines = [f"| {' | '.join(row)} |" for row in padded]
    lines.insert(1, "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|")
    return "\n".join(lines) + "\n"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _relative(argument: str) -> str:
    path, here = Path(argument), Path.cwd()
    return str(path.relative_to(here)) if path.is_absolute() and path.is_relative_to(here) else argument
