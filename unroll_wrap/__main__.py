"""The command line of the package: ``python -m unroll_wrap doctor``."""

import argparse

from .diagnostics.doctor import examine


def main() -> int:
    """Print the doctor's report, and return 0 if all is well, 1 if not."""
    parser = argparse.ArgumentParser(
        prog="python -m unroll_wrap", description="Unrolled GANs for the PyTorch training loop you already have."
    )
    parser.add_argument(
        "command",
        choices=["doctor"],
        help="print versions, the device, which optimizers and backwards work here, and verify a small net: "
        "for a first look, and for bug reports",
    )
    parser.parse_args()
    report = examine()
    print(report)
    return 0 if report.well else 1


if __name__ == "__main__":
    raise SystemExit(main())
