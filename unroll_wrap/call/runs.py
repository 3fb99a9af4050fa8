"""Mark the leaves of each run of a loss, so that a graph that was kept from an earlier run is known."""

from torch import Tensor

_RUN = "_unroll_wrap_run"


class Run:
    """One run of a loss in an unroll."""

    closed = False  # Whether it has returned, and no later run may reach its leaves.


def stand_for(stand_in: Tensor, tensor: Tensor) -> None:
    """Note which of the user's tensors another one stands for, so that its graph can be looked at."""
    stand_in._unroll_wrap_stands_for = tensor  # type: ignore[attr-defined]


def user_of(tensor: Tensor) -> Tensor:
    """Return the user's tensor that this one stands for, or the tensor itself."""
    return vars(tensor).get("_unroll_wrap_stands_for", tensor)


def mark(leaf: Tensor, run: Run) -> None:
    """Note on a leaf which run it was made for."""
    setattr(leaf, _RUN, run)


def run_of(tensor: Tensor) -> Run | None:
    """Return the run that a leaf was made for; None for any other tensor."""
    return getattr(tensor, _RUN, None)


def is_closed(tensor: Tensor) -> bool:
    """Return whether a tensor is a leaf of a run that no later one may reach."""
    run = run_of(tensor)
    return run is not None and run.closed
