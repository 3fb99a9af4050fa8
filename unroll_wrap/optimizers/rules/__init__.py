"""Optimizers with a rule of their own, one a file."""
