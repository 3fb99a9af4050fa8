"""Compare the first call's value with K real steps, wherever the package has to guess what a user's object does."""

import logging
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ..call.call import Call
from ..evaluation.exchange import can_exchange, is_observed
from ..evaluation.precision import precision, rounded
from ..evaluation.swap import Swap
from ..live.random_state import EveryState, RandomState
from ..live.snapshot import Snapshot
from .real_rounds import real_steps
from .training import check_clearing, clears_itself

logger = logging.getLogger("unroll_wrap")


def guesses(optimizers: Sequence[Any], rules: Sequence[Any], params: Sequence[Tensor], swap: Swap) -> list[str]:
    """Return in words what the package does not know about the user's objects; a rule is None for what is traced."""
    found: list[str] = []
    for optimizer, rule in zip(optimizers, rules, strict=True):
        name = type(optimizer).__name__
        if rule is None:
            found.append(f"{name} has no update rule of its own")
        elif not rule.__module__.startswith("unroll_wrap."):
            found.append(f"{name} steps by {rule.__name__}, a registered rule")
        if clears_itself(optimizer):
            found.append(f"{name} has a zero_grad of its own")
    for p in params:
        if type(p) is not nn.Parameter:
            found.append(f"a parameter of D is a {type(p).__name__}")
        # The attributes that torch.compile leaves on a parameter do not count.
        if vars(p) and (names := sorted(n for n in vars(p) if not n.startswith("_dynamo"))):
            found.append(f"a parameter of D has the attributes {names}")
        if p._backward_hooks:
            found.append(f"a parameter of D has gradient hooks: {_names(p._backward_hooks.values())}")
    if is_observed() or not can_exchange(params):
        # While another tensor stands in for one of the user's, that one has another class, of the same name.
        found.append(
            "a profiler, hooks on saved tensors or weak references keep D's tensors, and others stand in for them"
        )
    for module in swap.modules:
        if module._backward_hooks or module._backward_pre_hooks:
            hooks = (*module._backward_hooks.values(), *module._backward_pre_hooks.values())
            found.append(f"the {type(module).__name__} in D has backward hooks: {_names(hooks)}")
    found += [f"D keeps a {type(o).__name__} outside of its registers" for o in swap.holders.belongings.objects]
    return list(dict.fromkeys(found))


def _names(hooks: Iterable[Any]) -> str:
    """Return the names of hooks, so that one which is registered later is another doubt."""
    return ", ".join(getattr(hook, "__qualname__", type(hook).__name__) for hook in hooks)


def needed(
    unrolled: Any, call: Call, swap: Swap, owned: Sequence[Tensor], optimizers: Sequence[Any], rules: Sequence[Any]
) -> "Proof | None":
    """Return the comparison with real steps that a call needs; None if earlier calls have settled every doubt."""
    if not unrolled.prove:
        return None
    proven = unrolled._known.proven
    # More steps may come to what fewer have not, such as a teacher that is moved after each.
    if doubts := [d for d in guesses(optimizers, rules, owned, swap) if proven.get(d, 0) < call.steps]:
        return Proof(unrolled, call, owned, doubts)
    more = check_clearing(optimizers, owned, call.steps) if proven else None
    return Proof(unrolled, call, owned, [more]) if more else None


class Proof:
    """A comparison of a call with K real steps of the live objects from the same state."""

    def __init__(self, unrolled: Any, call: Call, owned: Sequence[Tensor], doubts: Sequence[str]) -> None:
        self.batches: list[tuple[Any, ...]] = []  # The batches of the inner steps, noted while the call runs.
        # The states of torch's generators before each evaluation of a loss, noted while the call runs.
        self.random: list[RandomState] = []
        self._owned = owned
        self.doubts = doubts  # What the package does not know, in words.
        self._losses = call.d_loss, call.g_loss
        self._before = Snapshot(self._losses)
        self._state = EveryState(owned, ())
        self._real = real_steps(unrolled, call.d_loss, call.g_loss, call.batch, self.batches, call.kwargs)

    def note(self, batch: tuple[Any, ...] | None = None) -> None:
        """Note the random state before a loss runs, and the batch if the loss is that of an inner step."""
        self.random.append(RandomState(self._owned))
        if batch is not None:
            self.batches.append(batch)

    def check(self, value: Tensor, d_losses: Sequence[Tensor]) -> None:
        """Raise if a call and real steps differ by more than rounding, unless ``d_loss`` does not repeat itself."""
        found = value.item()
        after = Snapshot(self._losses)
        try:
            right = self._run()
            first = self._real.values[0][1]
            unit = precision(self._owned)
            allowed = 100 * unit * max(1.0, abs(right)) * len(self.batches)
            if not abs(found - right) > allowed:
                return
            again = self._run()
            repeats = again == right and self._real.values[0][1] == first
            if repeats and abs(found - right) <= 30 * self._rounding(right, unit):
                return
        finally:
            after.restore()
        if not repeats:
            logger.warning(
                "The first call could not be proven, because d_loss gives %r and, from the same state again, %r: %s.",
                right,
                again,
                "; ".join(self.doubts),
            )
            return
        raise ValueError(
            f"The loss is {found!r}, and after {len(self.batches)} real steps of your own objects it is {right!r}; "
            f"d_loss at the first was {d_losses[0].item()!r}, and {first!r} there. What an unroll may have missed: "
            f"{'; '.join(self.doubts)}. verify(unrolled, ...) tells more; unrolled.prove = False "
            "switches this check off."
        )

    def _run(self) -> float:
        self._before.restore()
        following = iter(self.random)

        def drawn(_: str) -> AbstractContextManager[object]:
            return next(following).replayed()

        with self._state.replayed():
            return self._real.run(around=drawn)

    def _rounding(self, right: float, unit: float) -> float:
        """Return how far the value of real steps moves if parameters differ in the last bit or two."""
        generator = torch.Generator().manual_seed(0)
        moved = []
        for _ in range(2):
            with rounded(self._owned, unit, generator):
                moved.append(abs(self._run() - right))
        return max(moved)
