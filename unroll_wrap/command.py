"""The program ``unroll_wrap``: ``unroll_wrap doctor``, ``unroll_wrap demo`` and ``unroll_wrap --version``."""

import argparse
from collections.abc import Sequence

from .diagnostics.demo import demo
from .diagnostics.doctor import examine
from .version import __version__

_DOCTOR = (
    "print versions, the device, which optimizers and backwards work here, and verify a small net: for a first look, "
    "and for bug reports"
)
_DEMO = "train a ring of Gaussians with a plain GAN and with an unrolled one, a minute in all"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command of the program; return 0 if all is well, 1 if the doctor finds a problem, 2 without a command."""
    parser = argparse.ArgumentParser(
        prog="unroll_wrap", description="Unrolled GANs for the PyTorch training loop you already have."
    )
    parser.add_argument("--version", action="version", version=f"unroll_wrap {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    commands.add_parser("doctor", help=_DOCTOR, description=_DOCTOR)
    ring = commands.add_parser("demo", help=_DEMO, description=_DEMO)
    ring.add_argument("--steps", type=int, default=5, metavar="K", help="optimizer steps to look ahead (5)")
    ring.add_argument("--updates", type=int, default=1000, help="generator updates of each (1000)")
    ring.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    if given.command is None:
        parser.print_help()
        return 2
    if given.command == "demo":
        for name in ("steps", "updates"):
            if getattr(given, name) < 1:
                ring.error(f"--{name} is {getattr(given, name)}: pass a whole number >= 1")
        demo(given.steps, given.updates, seed=given.seed)
        return 0
    report = examine()
    print(report)
    return 0 if report.well else 1
