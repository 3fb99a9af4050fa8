"""The update rules of known optimizers, one algorithm per file."""
