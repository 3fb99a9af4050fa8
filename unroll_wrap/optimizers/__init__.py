"""Optimizers as pure functions: one a file, and the reader of live ones."""

from .read import register_rule
from .rule import UpdateRule

__all__ = ["UpdateRule", "register_rule"]
