"""Correct and fast second derivatives for operators whose second derivatives are slow, wrong or missing in torch.

Where formulas cover the whole graph of a loss, they give its gradient and the second derivatives (``adjoint``).
Otherwise autograd does, with some operators replaced while the loss runs and some nodes of its graph repaired.
"""
