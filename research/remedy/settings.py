"""The settings, each by its label: a D, a pair of losses, an optimizer, and how both players are updated."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from remedy import discriminators, games, penalties, unrolled
from remedy.extragradient import extragradient
from remedy.optimistic import OptimisticAdam
from remedy.penalties import Penalty
from remedy.players import Players, Update
from remedy.task import Task
from unroll_wrap import Extrapolate, Objective, non_saturating, wasserstein

UNROLLING, REMEDIES, TOGETHER = "unrolling", "other remedies", "other remedies with K = 5"


@dataclass(frozen=True)
class Setting:
    """What differs from the plain game, on every task alike."""

    group: str
    start: Callable[[Players], Update] = unrolled.plain
    D: Callable[[Task], nn.Module] = discriminators.plain
    objective: Objective = non_saturating
    penalty: Callable[[Task], Penalty] | None = None
    optimizer: type[torch.optim.Optimizer] = torch.optim.Adam


def _unrolling() -> dict[str, Setting]:
    starts = {
        "plain": unrolled.plain,
        "K = 1": unrolled.unrolled(steps=1),
        "K = 5": unrolled.unrolled(steps=5),
        "K = 10": unrolled.unrolled(steps=10),
        "K = 5, first term": unrolled.unrolled(steps=5, stop_gradient=True),
        "K = 1, extrapolated": unrolled.unrolled(steps=1, average=Extrapolate(3.0)),
        "both players, K = 1": unrolled.both,
        "level-k": unrolled.level_k,
    }
    return {label: Setting(UNROLLING, start) for label, start in starts.items()}


REMEDY = {
    "R1": Setting(REMEDIES, penalty=penalties.r1),
    "WGAN-GP": Setting(REMEDIES, objective=wasserstein, penalty=penalties.gradient_penalty),
    "spectral norm": Setting(REMEDIES, D=discriminators.spectral),
    "packing": Setting(REMEDIES, D=discriminators.packed),
    "minibatch std": Setting(REMEDIES, D=discriminators.spread),
    "consensus": Setting(REMEDIES, games.adjusted(games.consensus)),
    "symplectic": Setting(REMEDIES, games.adjusted(games.symplectic)),
    "extragradient": Setting(REMEDIES, extragradient()),
    "optimistic Adam": Setting(REMEDIES, optimizer=OptimisticAdam),
}
# Not with K = 5: they differentiate the gradient of G's loss, and an unrolled loss can be differentiated once.
ALONE = ("consensus", "symplectic")


def _together() -> dict[str, Setting]:
    ahead = {"extragradient": extragradient(steps=5)}
    return {
        f"{label}, K = 5": replace(setting, group=TOGETHER, start=ahead.get(label, unrolled.unrolled(steps=5)))
        for label, setting in REMEDY.items()
        if label not in ALONE
    }


SETTINGS = {**_unrolling(), **REMEDY, **_together()}
