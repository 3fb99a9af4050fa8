"""Appendix B of the paper and what goes beyond it: `python research/study.py NAME`."""
