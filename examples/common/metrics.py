"""How much of a known distribution a generator covers."""

import torch
from scipy import stats
from torch import Tensor


def shares_by_mode(samples: Tensor, centers: Tensor, std: float, *, radius: float = 3.0) -> Tensor:
    """s_i = share of all samples whose nearest centre is c_i and that lie within radius · std of it.

    Args:
        samples: Shape (n, dimensions). A sample that is not finite lies near no mode.
        centers: Distinct means, shape (modes, dimensions).
        std: Standard deviation of every mode.
        radius: Reach of a mode in standard deviations (a 2D Gaussian has 98.9 % of its mass within 3).

    Returns:
        A tensor of shape (modes,) whose sum is at most 1.
    """
    distance, nearest = torch.cdist(samples, centers).min(dim=1)
    counts = torch.bincount(nearest[distance <= radius * std], minlength=len(centers))
    return counts / len(samples)


def modes_covered(samples: Tensor, centers: Tensor, std: float, *, at_least: float = 0.01) -> int:
    """#{i : s_i ≥ at_least}: a mode is covered when at least 1 % of all samples lie within 3 std of it.

    A single sample in reach, the looser rule of some papers, also counts modes that a collapsed generator
    merely grazes on its way round the ring.

    Args:
        samples: Shape (n, dimensions).
        centers: Distinct means, shape (modes, dimensions).
        std: Standard deviation of every mode.
        at_least: Share of all samples that a covered mode holds.

    Returns:
        The number of covered modes.
    """
    return int((shares_by_mode(samples, centers, std) >= at_least).sum())


def share_within(samples: Tensor, centers: Tensor, std: float) -> float:
    """Σ_i s_i: the share of samples within 3 std of some mode, the field's "high quality" samples.

    Args:
        samples: Shape (n, dimensions).
        centers: Distinct means, shape (modes, dimensions).
        std: Standard deviation of every mode.

    Returns:
        A number from 0 to 1; samples of the data itself in two dimensions give 0.989.
    """
    return float(shares_by_mode(samples, centers, std).sum())


def kl_from_uniform(outcomes: Tensor, count: int) -> float:
    """KL(p ‖ uniform) = Σ_i p_i log(count · p_i), in nats, with p_i the share of outcome i.

    Args:
        outcomes: Whole numbers from 0 to count - 1.
        count: Number of outcomes, those that never came included.

    Returns:
        0 for equal shares, log(count) for a single outcome. Of n fair draws about count / 2n is expected, not 0.
    """
    return float(stats.entropy(outcomes.cpu().bincount(minlength=count), torch.ones(count, dtype=torch.float64)))


def entropy(outcomes: Tensor, count: int) -> float:
    """H(p) = -Σ_i p_i log p_i, in nats, with p_i the share of outcome i.

    Args:
        outcomes: Whole numbers from 0 to count - 1.
        count: Number of outcomes.

    Returns:
        A number from 0, a single outcome, to log(count), equal shares.
    """
    return float(stats.entropy(outcomes.cpu().bincount(minlength=count)))
