"""Optimizers as pure functions: one a file, and the reader of live ones."""

from .adam import Adam
from .block import Block
from .from_torch import read, register_rule
from .rule import UpdateRule
from .sgd import SGD

__all__ = ["SGD", "Adam", "Block", "UpdateRule", "read", "register_rule"]
