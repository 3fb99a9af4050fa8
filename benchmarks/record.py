"""Where the numbers come from, beside the numbers."""

import json
import os
import platform
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import unroll_wrap


def environment() -> dict[str, Any]:
    """Command, machine and versions; nothing that names a folder of it."""
    cpu, cpuinfo = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if cpuinfo.exists():
        named = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        cpu = named[0].split(":", 1)[1].strip() if named else cpu
    return {
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": {
            "cpu": cpu,
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "load": round(os.getloadavg()[0], 2),
            "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "versions": {
            "python": platform.python_version(),
            "unroll_wrap": unroll_wrap.__version__,
            **{name: installed(name) for name in ("torch", "higher", "torchopt", "jax", "optax")},
        },
    }


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def headline(found: dict[str, Any]) -> str:
    machine, versions = found["machine"], found["versions"]
    packages = ", ".join(f"{name} {number or 'missing'}" for name, number in versions.items())
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} thread(s)\n{packages}"


def write(path: Path, found: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path}")
