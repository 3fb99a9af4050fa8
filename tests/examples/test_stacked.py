"""Seeds stacked in one process train as each does alone, draws included; in float64."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="the examples' extra is not installed")
pytest.importorskip("tensorboard", reason="the examples' extra is not installed")

ROOT = Path(__file__).parents[2]


@pytest.fixture
def examples(monkeypatch):
    """The folders of the scripts and of the studies on the path, and float64 by default."""
    for folder in ("examples", "research"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def gap(found, expected):
    """The largest distance between the entries of two lists of tensors, relative to the largest entry."""
    distance = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
    return distance / max(float(b.abs().max()) for b in expected)


def alone(config, seed):
    """The ring as its script trains it: plain networks, torch's global generator."""
    import mixture_of_gaussians as ring
    from common.training import with_adam

    fields = {name: getattr(config, name) for name in ring.Config.__dataclass_fields__} | {"seed": seed}
    torch.manual_seed(seed)
    rates = {"g_lr": config.g_lr, "d_lr": config.d_lr, "betas": config.betas}
    players = with_adam(*ring.networks(config), torch.device("cpu"), **rates)
    for _ in ring.train(ring.Config(**fields), players, 0, torch.device("cpu")):
        pass
    return players


def stacked(config):
    from ring_studies.training import build, train

    parts = build(config, torch.device("cpu"))
    for _ in train(config, parts, 0, torch.device("cpu")):
        pass
    return parts


def weights(net):
    return [p.detach() for p in net.parameters()]


def of_network(net, s):
    """One network of a stack, in the shapes of a plain one."""
    return [p[s].T if p.shape[1] > 1 else p[s, 0] for p in weights(net)]


@pytest.mark.parametrize("unroll", [0, 3])
def test_equals_each_seed_alone(examples, unroll):
    """After 15 updates at rates that move the weights by their own size; the wrong seed is far off."""
    from ring_studies.training import Config

    config = Config(unroll=unroll, seeds=(0, 5, 2), updates=15, batch=16, noise=8, g_lr=3e-3, d_lr=3e-3, decay=True)
    parts = stacked(config)
    for s, seed in enumerate(config.seeds):
        players = alone(config, seed)
        for net, plain in ((parts.G, players.G), (parts.D, players.D)):
            assert gap(of_network(net, s), weights(plain)) < 1e-9
            assert gap(of_network(net, s - 1), weights(plain)) > 1e-2


@pytest.mark.parametrize(
    "switches", [{"unroll": 2, "resample": True, "g_updates": 2}, {"unroll": 0, "ensemble": 3, "period": 2}]
)
def test_does_not_depend_on_its_neighbours(examples, switches):
    """With the switches that draw or remember: new minibatches inside, several updates of G, an ensemble."""
    from ring_studies.training import Config

    config = Config(seeds=(0, 5), updates=10, batch=16, noise=8, g_lr=3e-3, d_lr=3e-3, **switches)
    together, one = stacked(config), stacked(replace(config, seeds=(5,)))
    assert gap([p[1:] for p in weights(together.G)], weights(one.G)) < 1e-9
    assert gap([p[:1] for p in weights(together.G)], weights(one.G)) > 1e-2
