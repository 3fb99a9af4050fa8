"""Optimizers as pure functions: one a file, and the reader of live ones."""

from .clipping import clip_grad_norm, clip_grad_value
from .read import register_rule
from .rule import UpdateRule

__all__ = ["UpdateRule", "clip_grad_norm", "clip_grad_value", "register_rule"]
