"""Everything that waits for a GPU, smallest first: ``make gpu``. A part that is done is not done again.

Each part is a command with a time limit, and its output goes to a file. After a stop, or a part that has failed or run
out of time, the same command goes on with what is missing; ``--again`` forgets what was done.

    python benchmarks/gpu.py --list
    python benchmarks/gpu.py --budget 1200
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
MINUTES = 60.0


@dataclass(frozen=True)
class Part:
    """One command; ``seconds`` is what it may take."""

    name: str
    command: tuple[str, ...]
    seconds: float = 10 * MINUTES
    environment: dict[str, str] = field(default_factory=dict)


def plan(device: str, out: Path) -> list[Part]:
    """The smallest first, so that a short time on a GPU says the most."""
    python, tests = sys.executable, (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    here = {"UNROLL_WRAP_DEVICE": device}
    step_cost = (python, "benchmarks/step_cost.py", "--device", device, "--budget", "60")
    parts = [
        Part("doctor", (python, "-m", "unroll_wrap", "doctor"), 2 * MINUTES),
        Part("table", (*tests, "tests/runtime/test_device.py"), environment=here),
        Part("launches", (*tests, "tests/runtime/test_launches.py"), environment=here),
    ]
    for net in ("ring", "stacked", "cifar10"):
        written = ("--json", str(out / f"step_cost_{net}.json"))
        parts.append(Part(f"cost, {net}", (*step_cost, "--nets", net, "--steps", "5", "10", *written)))
    for example, options in (
        ("mixture_of_gaussians", ("--preset", "paper")),
        ("rnn_mnist", ("--preset", "paper", "--device", device)),
        ("stacked_mnist", ("--preset", "paper", "--device", device)),
        ("colored_mnist", ("--preset", "paper", "--device", device)),
        ("cifar10", ("--preset", "paper", "--device", device)),
    ):
        command = (python, f"examples/{example}.py", *options, "--out", str(out / example))
        parts.append(Part(f"paper, {example}", command))
    return parts


def go_on(parts: list[Part], out: Path, budget: float, again: bool = False) -> dict[str, str]:
    """Run what is not done yet, as long as the budget of seconds lasts; how each part stands."""
    out.mkdir(parents=True, exist_ok=True)
    state = out / "state.json"
    done: dict[str, str] = {} if again or not state.exists() else json.loads(state.read_text(encoding="utf-8"))
    end = time.monotonic() + budget
    for part in parts:
        left = end - time.monotonic()
        if done.get(part.name) == "done":
            continue
        if left <= 0:
            done.setdefault(part.name, "waiting")
            continue
        print(f"{part.name}: {' '.join(part.command)}", flush=True)
        done[part.name] = run(part, out, min(left, part.seconds))
        print(f"{part.name}: {done[part.name]}", flush=True)
        state.write_text(json.dumps(done, indent=1) + "\n", encoding="utf-8")
    return {part.name: done.get(part.name, "waiting") for part in parts}


def run(part: Part, out: Path, seconds: float) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **part.environment}
    with (out / f"{part.name.replace(', ', '_')}.txt").open("w", encoding="utf-8") as file:
        try:
            found = subprocess.run(
                part.command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, timeout=seconds
            )
        except subprocess.TimeoutExpired:
            return f"out of time after {seconds:.0f} s"
    return "done" if found.returncode == 0 else f"failed with {found.returncode}"


def main() -> None:
    parser = argparse.ArgumentParser(description="What waits for a GPU (see the top of this file).")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "gpu")
    parser.add_argument("--budget", type=float, default=120 * MINUTES, help="seconds for all parts together")
    parser.add_argument("--list", action="store_true", help="the plan, and nothing else")
    parser.add_argument("--again", action="store_true", help="also what is done")
    args = parser.parse_args()
    parts = plan(args.device, args.out)
    if args.list:
        for part in parts:
            print(f"{part.seconds / MINUTES:3.0f} min  {part.name}: {' '.join(part.command)}")
        return
    found = go_on(parts, args.out, args.budget, args.again)
    if any(state != "done" for state in found.values()):
        sys.exit("not done: " + ", ".join(f"{name} ({state})" for name, state in found.items() if state != "done"))


if __name__ == "__main__":
    main()
