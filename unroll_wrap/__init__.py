"""Unrolled GANs (Metz et al. 2016) as a drop-in for existing PyTorch training loops."""

from .backward import Compiled, FiniteDifference, Recompute, Store, Truncate
from .call.average import Extrapolate
from .call.categories import (
    EvalMode,
    FreshState,
    LogitsExpected,
    PartialDetach,
    PartlyFrozen,
    SecondTermMissing,
    UnrollWarning,
)
from .diagnostics.diagnose import diagnose
from .diagnostics.diagnosis import Diagnosis
from .diagnostics.predict import Prediction, predict
from .diagnostics.verification import Verification
from .diagnostics.verify import verify
from .gan import UnrolledDiscriminatorLoss, UnrolledGeneratorLoss
from .guards import detach, is_unrolling, no_grad
from .loss import UnrolledLoss
from .objectives import Objective, hinge, least_squares, minimax, non_saturating, relativistic, wasserstein
from .optimizers import UpdateRule, clip_grad_norm, clip_grad_value, register_rule
from .sequence import UnrolledSequence
from .version import __version__ as __version__

__all__ = [
    "Compiled",
    "Diagnosis",
    "EvalMode",
    "Extrapolate",
    "FiniteDifference",
    "FreshState",
    "LogitsExpected",
    "Objective",
    "PartialDetach",
    "PartlyFrozen",
    "Prediction",
    "Recompute",
    "SecondTermMissing",
    "Store",
    "Truncate",
    "UnrollWarning",
    "UnrolledDiscriminatorLoss",
    "UnrolledGeneratorLoss",
    "UnrolledLoss",
    "UnrolledSequence",
    "UpdateRule",
    "Verification",
    "clip_grad_norm",
    "clip_grad_value",
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
