"""Unrolled GANs (Metz et al. 2016) as a drop-in for existing PyTorch training loops."""

from .backward import Compiled, FiniteDifference, Recompute, Store, Truncate
from .diagnosis import Diagnosis, diagnose
from .guards import detach, is_unrolling, no_grad
from .loss import UnrolledGeneratorLoss
from .objectives import Objective, hinge, least_squares, minimax, non_saturating, relativistic, wasserstein
from .prediction import Prediction, predict
from .rules import UpdateRule, register_rule
from .verification import Verification, verify

__version__ = "0.1.0"

__all__ = [
    "Compiled",
    "Diagnosis",
    "FiniteDifference",
    "Objective",
    "Prediction",
    "Recompute",
    "Store",
    "Truncate",
    "UnrolledGeneratorLoss",
    "UpdateRule",
    "Verification",
    "detach",
    "diagnose",
    "hinge",
    "is_unrolling",
    "least_squares",
    "minimax",
    "no_grad",
    "non_saturating",
    "predict",
    "register_rule",
    "relativistic",
    "verify",
    "wasserstein",
]
