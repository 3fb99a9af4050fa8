"""How to differentiate is an object: one way a file, over one reverse sweep."""

from .store import Store
from .sweep import Backward, sweep

__all__ = ["Backward", "Store", "sweep"]
