"""How to differentiate is an object: one way a file, over one reverse sweep."""

from .compiled import Compiled
from .finite_difference import FiniteDifference
from .recompute import Recompute
from .store import Store
from .sweep import Backward, Tape, sweep
from .truncate import Truncate

__all__ = ["Backward", "Compiled", "FiniteDifference", "Recompute", "Store", "Tape", "Truncate", "sweep"]
