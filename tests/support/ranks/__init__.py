"""What every rank of a process group runs for test_distributed.py, by theme; `python -m ranks` runs it.

A case is a function of this rank and the number of them; what it asserts must hold on every rank.
"""

from . import failures, hosts, joined_batch, wrappers
from .table import CASES

__all__ = ["CASES", "failures", "hosts", "joined_batch", "wrappers"]
