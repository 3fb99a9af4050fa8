"""Appendix B of the paper and what goes beyond it: `python examples/mixture_of_gaussians.py study NAME`."""
