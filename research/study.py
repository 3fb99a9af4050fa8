"""The studies on the ring of Gaussians, each by its name: `python research/study.py --help` lists them.

They train the ring of `examples/mixture_of_gaussians.py`, with the switches of Appendix B and some beyond it.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "examples"))

from ring_studies.command import main

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
