"""Torch's own table of optimizer configurations, and a net small enough to try all of them.

`torch.testing._internal.common_optimizers.optim_db` is what torch tests its optimizers with. Each of its rows is taken
in the plain loop, in the foreach form, and fused where there is such a form on the CPU.
"""

import copy
from typing import Any, NamedTuple

import reference
import torch
from checks import GRADIENT, oracle
from problems import World, double, points, small_generator
from torch import nn
from torch.testing._internal.common_optimizers import optim_db

from unroll_wrap import UnrolledGeneratorLoss

STEPS = 3
# Three steps of 1e-3 move D little. It is told from the first term by a thousand times the tolerance at the least.
GAP = 1000 * GRADIENT
REFUSED = ("LBFGS", "SparseAdam")
# Torch runs Muon's iteration in bfloat16; and it takes nothing but matrices.
STAIRCASE = ("Muon",)
# What moves D is the sign of its gradient.
NO_SECOND_TERM = ("Rprop",)


class Configuration(NamedTuple):
    """One way to construct an optimizer."""

    kind: type[torch.optim.Optimizer]
    options: dict[str, Any]
    name: str

    def __call__(self, params):
        """As a factory or a spec; every instance has tensors of its own."""
        return self.kind(params, **copy.deepcopy(self.options))


def configurations() -> list[Configuration]:
    """All that torch accepts."""
    return [one for info in optim_db for one in _of(info) if _accepted(one)]


def unaccepted() -> list[Configuration]:
    """What torch itself refuses when it is constructed: a tensor learning rate in the foreach form of some."""
    return [one for info in optim_db for one in _of(info) if not _accepted(one)]


def _of(info) -> list[Configuration]:
    forms = ["loop", *(form for form in info.supported_impls if form in ("foreach", "fused"))]
    found = []
    for place, row in enumerate(info.optim_inputs_func(device="cpu")):
        for form in forms:
            options = dict(row.kwargs)
            if form != "loop":
                options[form] = True
            elif "foreach" in forms:
                options["foreach"] = False
            found.append(Configuration(info.optim_cls, options, f"{info.optim_cls.__name__}-{place}-{form}"))
    return found


def _accepted(one: Configuration) -> bool:
    try:
        one([nn.Parameter(torch.zeros(2, 2))])
    except ValueError:
        return False
    return True


def world_of(factory, *, biases=True, warm=True) -> World:
    """A discriminator of a matrix and a vector a layer, under the given optimizer, after 24 real steps.

    After 20 an entry of amsgrad's maximum is so near to being overtaken that differences meet the kink at h = 7e-6.
    """
    torch.manual_seed(0)
    D = double(nn.Sequential(nn.Linear(2, 4, bias=biases), nn.Tanh(), nn.Linear(4, 1, bias=biases)))
    G = small_generator()
    world = World(D, factory(D.parameters()), G, points(G))
    return world.warm(24) if warm else world


def wrapped(world, **options):
    """The wrapper as a user makes it."""
    options = {"steps": STEPS, **options}
    return UnrolledGeneratorLoss(world.discriminator, world.optimizer, world.d_loss, world.g_loss, **options)


def steepness(world, steps=STEPS):
    """The slope of the value along one direction; a smaller step where the first one meets a kink."""
    (way,) = reference.directions(world.inputs, 1)
    for first in (0.002, 0.0002, 0.00005):
        found = reference.central_difference(
            lambda: oracle(reference.value, world, steps=steps), world.inputs, way, first=first, rows=3
        )
        if found.error < 0.1 * GRADIENT * abs(found.slope):
            return way, found.slope
    raise AssertionError(f"the oracle is unsure: {found.error:.1e} of {found.slope:.1e}")
