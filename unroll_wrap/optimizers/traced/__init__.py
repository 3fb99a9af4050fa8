"""Optimizers without a rule: their own ``step()``, recorded and differentiated."""
