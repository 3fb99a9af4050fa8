"""Optimizers as pure functions: the rules, and the reader that makes them from live optimizers."""

from .clipping import clip_grad_norm, clip_grad_value
from .read import register_rule
from .rule import UpdateRule

__all__ = ["UpdateRule", "clip_grad_norm", "clip_grad_value", "register_rule"]
