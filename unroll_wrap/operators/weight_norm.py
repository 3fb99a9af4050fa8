"""Weight normalization with a right second derivative: torch 2.14 returns a wrong one on the CPU, silently."""

import torch
from torch import Tensor


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """W = g v / ‖v‖, the norm over all dimensions but ``dim``."""
    return v * (g / torch.norm_except_dim(v, 2, dim))
