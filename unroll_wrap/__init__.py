"""Unrolled GANs (Metz et al. 2016) as a drop-in for existing PyTorch training loops."""

from .backward import FiniteDifference, Recompute, Store, Truncate
from .guards import detach, is_unrolling, no_grad
from .loss import UnrolledGeneratorLoss
from .objectives import Objective, hinge, least_squares, minimax, non_saturating, relativistic, wasserstein
from .rules import UpdateRule, register_rule

__version__ = "0.1.0"

__all__ = [
    "FiniteDifference",
    "Objective",
    "Recompute",
    "Store",
    "Truncate",
    "UnrolledGeneratorLoss",
    "UpdateRule",
    "detach",
    "hinge",
    "is_unrolling",
    "least_squares",
    "minimax",
    "no_grad",
    "non_saturating",
    "register_rule",
    "relativistic",
    "wasserstein",
]
