"""The backwards: ways to compute the second term of Eq. 12, one per file, over one shared reverse sweep."""

from .compiled.compiled import Compiled
from .finite_difference import FiniteDifference
from .recompute import Recompute
from .store import Store
from .sweep import Backward, Tape, sweep
from .truncate import Truncate

__all__ = ["Backward", "Compiled", "FiniteDifference", "Recompute", "Store", "Tape", "Truncate", "sweep"]
