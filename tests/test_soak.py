"""2,000 calls: memory does not grow."""

import gc
import os
from pathlib import Path

import pytest
import torch
from checks import call, warm_world
from test_exact import unrolled_of

CALLS = 2000
STATM = Path("/proc/self/statm")
# A call leaks about 20 kB of tensors and graph where its result is kept (the control), so that 2,000 leak 40 MB.
TENSORS, BYTES_PER_CALL = 20, 4096


def live_tensors():
    gc.collect()
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


def resident_bytes():
    """Resident memory of this process, or 0 where the system does not say."""
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if STATM.exists() else 0


def growth(act, calls, settle):
    """Tensors and bytes that `calls` further calls of act(i) leave behind, after `settle` of them."""
    for i in range(settle):
        act(i)
    tensors, memory = live_tensors(), resident_bytes()
    for i in range(calls):
        act(i)
    return live_tensors() - tensors, resident_bytes() - memory


def caller():
    """Calls that alternate nets, ways to pass the batch, K and whether a backward follows."""
    names = ["mlp", "dropout", "unused_head", "tied"] * 2 + ["weight_norm_legacy"]
    worlds = {name: warm_world(name) for name in names}
    wrappers = {name: unrolled_of(world, steps=1) for name, world in worlds.items()}

    def act(i):
        name = names[i % len(names)]
        world, unrolled = worlds[name], wrappers[name]
        loss = call(world, unrolled, "closure" if i % 3 == 0 else "argument", steps=1 + i % 7 // 6)
        if i % 5:
            loss.backward()
            world.generator.zero_grad(set_to_none=False)
        return loss

    return act


def test_two_thousand_calls_leave_nothing_behind():
    """Neither tensors that Python sees nor memory that only the system sees."""
    tensors, memory = growth(caller(), CALLS, settle=100)
    assert tensors <= TENSORS
    assert memory <= CALLS * BYTES_PER_CALL, f"{memory / CALLS:.0f} bytes a call"


@pytest.mark.parametrize("kept", ["results", "graphs"])
def test_the_soak_sees_a_leak(kept):
    """The control: a loop that keeps its results, or only their graphs, is over the bounds."""
    act, kept_ones = caller(), []

    def leaking(i):
        loss = act(5 * i)  # without backward, which would free the graph
        kept_ones.append(loss if kept == "results" else loss.grad_fn)

    tensors, memory = growth(leaking, 200, settle=50)
    assert tensors > TENSORS or memory > 200 * BYTES_PER_CALL
