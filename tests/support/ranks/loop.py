"""The user's loop over several processes, and the same loop in one."""

from contextlib import nullcontext
from functools import lru_cache

import torch
from torch.nn.parallel import DistributedDataParallel as DDP
from worlds import points, softplus

from .table import ROWS, build, world


def train(one, unrolled, deal, *, iterations=3, accumulate=1, backward=torch.Tensor.backward, opt_G=None):
    """The user's loop: a step of D, and one of G over some batches. `deal` takes this process's rows."""
    D, G = one.discriminator, one.generator
    opt_G = opt_G or torch.optim.Adam(G.parameters(), lr=0.01)
    for i in range(iterations):
        one.optimizer.zero_grad()
        real, fake = deal(one.draw(i))
        on_real, on_fake = D(torch.cat([real, fake.detach()])).chunk(2)
        backward((softplus(-on_real) + softplus(on_fake)).mean())
        one.optimizer.step()
        opt_G.zero_grad()
        for j in range(accumulate):
            last = j == accumulate - 1
            with nullcontext() if last or not isinstance(G, DDP) else G.no_sync():
                backward(unrolled(*deal(one.draw(i + 5 + j))) / accumulate)
        opt_G.step()
    return [p.detach().clone() for p in (*G.parameters(), *D.parameters())]


def wrapped(wrap_D, wrap_G=DDP):
    """The joined world, its nets wrapped as a user's are; the optimizers own the same parameters."""
    one = world()
    one.discriminator, one.generator = wrap_D(one.discriminator), wrap_G(one.generator)
    one.draw = points(one.generator, rows=ROWS)
    return one


@lru_cache
def trained(accumulate=1):
    one = world()
    return train(one, build(one, False), lambda batch: batch, accumulate=accumulate)
