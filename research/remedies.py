"""Unrolling beside other remedies against collapse: `python research/remedies.py --help` says how to run it.

All settings train the same small networks on the same data, and are compared at equal updates and at equal time.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "examples"))

from remedy.command import main

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
