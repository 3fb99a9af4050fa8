"""What the user gave, in the words of a message."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def described(value: Any) -> str:
    """What was given, in a line: most of it has a representation of a page."""
    name = type(value).__name__
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, Tensor):
        return f"a {name} of shape {tuple(value.shape)}"
    if isinstance(value, (nn.Module, torch.optim.Optimizer)):
        return f"an instance of {name}"
    if isinstance(value, Mapping) and value:
        return f"a {name} of {len(value)}, the first {described(next(iter(value.values())))}"
    if isinstance(value, (list, tuple)) and value:
        return f"a {name} of {len(value)}, the first {described(value[0])}"
    return f"{value!r:.100}"
