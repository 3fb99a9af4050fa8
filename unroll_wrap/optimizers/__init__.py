"""Optimizers as pure functions: the rules, and the reader that makes them from live optimizers."""

from .read import register_rule
from .rule import UpdateRule

__all__ = ["UpdateRule", "register_rule"]
