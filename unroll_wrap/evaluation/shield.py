"""Keep D's parameters requiring grad while ``g_loss`` runs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from .stand_ins import kind_of, put_kind


class Shielded(nn.Parameter):
    """A parameter while ``g_loss`` runs, which always requires grad.

    Most loops switch D's ``requires_grad`` off around the generator's step, some from within the loss. An unroll
    differentiates through D all the same, so these switches have no effect there.
    """

    def requires_grad_(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, requires_grad: bool = True
    ) -> "Shielded":
        """Return the parameter with its flag still on, whatever is asked."""
        return self

    @property
    def requires_grad(self) -> bool:
        """Always True."""
        return True

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        pass


@contextmanager
def shielded(params: Sequence[Tensor]) -> Iterator[None]:
    """Keep plain parameters requiring grad within this context, whatever a loss asks of them.

    Raises:
        ValueError: a loss has switched off a parameter of another class.
    """
    try:
        for p in params:
            if kind_of(p) is nn.Parameter:
                put_kind(p, Shielded)
        yield
    finally:
        unshield(params)
    off = [kind_of(p).__name__ for p in params if not p.requires_grad]
    if off:
        raise ValueError(
            f"g_loss switches requires_grad off for {len(off)} parameters of D, the first of them a {off[0]}: no "
            "derivative would pass through D's steps. Leave that to the training loop."
        )


def unshield(params: Sequence[Tensor]) -> None:
    """Make shielded parameters plain again, as often as you like."""
    for p in params:
        if kind_of(p) is Shielded:
            put_kind(p, nn.Parameter)
