"""Inner steps as compiled functions."""

from .compiled import Compiled

__all__ = ["Compiled"]
