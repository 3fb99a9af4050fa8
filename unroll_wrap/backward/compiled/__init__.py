"""The backward that compiles the inner steps and their pullbacks."""

from .compiled import Compiled

__all__ = ["Compiled"]
