"""Explain the failure of a loss that takes batches of one size only, and is given a batch of another size."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..call.batch import tensors_in


@contextmanager
def sizes_named(batch: tuple[Any, ...]) -> Iterator[None]:
    """Name the size that a loss takes, if torch complains in this context about two sizes, one of them the batch's."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        rows = {t.shape[0] for t in tensors_in(batch) if t.dim()}
        if wanted := _other_size(str(error), rows):
            raise ValueError(
                f"The batch has {min(rows)} samples, and a loss takes batches of {wanted} only: it has a tensor of "
                f"that size. Pass {wanted} samples, or let the loss make its labels after what D returns "
                f"(torch.ones_like). Torch said: {error}"
            ) from error
        raise


def _other_size(text: str, rows: set[int]) -> int | None:
    """Return the number beside the batch's own in an error about two sizes, or None for any other error."""
    if "size" not in text or len(rows) != 1:
        return None
    # In a shape such as Size([64, 1]), the first number is the size of the batch.
    leading = [int(n) for n in re.findall(r"Size\(\[(\d+)", text)]
    found = leading or [int(n) for n in re.findall(r"\((\d+)\)", text)]
    others = set(found) - rows
    return others.pop() if set(found) & rows and len(others) == 1 else None
