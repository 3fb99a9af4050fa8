"""The version of the package, which everything in it may read."""

__version__ = "0.1.0"
