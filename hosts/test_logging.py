"""The callback and the handler of the recipes, with Lightning and Ignite themselves."""

import logging
import warnings

import pytest
import recipes
import torch
from torch import nn

from unroll_wrap import UnrolledGeneratorLoss, diagnose, non_saturating

NAMES = {"unroll/steps", "unroll/share", "unroll/cosine", "unroll/g_loss", "unroll/seconds"}


def players():
    torch.manual_seed(0)
    G, D = nn.Linear(4, 2), nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
    return G, D, torch.optim.Adam(G.parameters(), lr=0.01), torch.optim.Adam(D.parameters(), lr=0.01)


def iteration(G, D, opt_G, opt_D, unrolled, real):
    """A step of each player; the batch that the generator's loss saw."""
    fake = G(torch.randn(len(real), 4))
    opt_D.zero_grad()
    non_saturating.d_loss(D, real, fake.detach()).backward()
    opt_D.step()
    opt_G.zero_grad()
    unrolled(real, fake).backward()
    opt_G.step()
    return real, fake


def with_ignite(handlers):
    """Train on 10 batches; the weights at the end, and the metrics after every iteration."""
    from ignite.engine import Engine, Events

    G, D, opt_G, opt_D = players()
    unrolled = UnrolledGeneratorLoss(D, opt_D, *non_saturating, steps=2)
    seen = []

    def step(engine, real):
        return {"unrolled": iteration(G, D, opt_G, opt_D, unrolled, real)}

    trainer = Engine(step)
    for every, make in handlers:
        trainer.add_event_handler(Events.ITERATION_COMPLETED(every=every), make(unrolled))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: seen.append(dict(engine.state.metrics)))
    torch.manual_seed(1)
    trainer.run([torch.randn(6, 2) for _ in range(10)], max_epochs=1)
    return G.weight.detach(), seen


def test_the_ignite_handler():
    """Metrics from the fourth iteration on, anew at the eighth; training goes on to the last bit as without it."""
    pytest.importorskip("ignite")
    from ignite_handler import LogDiagnosis

    weight, seen = with_ignite([(4, LogDiagnosis)])
    assert not seen[2] and set(seen[3]) >= NAMES
    assert seen[3] == seen[6] != seen[7]
    assert seen[7]["unroll/steps"] == 2 and 0 < seen[7]["unroll/share"] < 1
    plain, nothing = with_ignite([])
    assert torch.equal(weight, plain) and not any(nothing)


def with_lightning(callbacks):
    """Train on 10 batches; the weights at the end, what was logged by step, and the callback's own batch diagnosed."""
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.loggers import Logger

    class Kept(Logger):
        name = version = "kept"
        found: dict = {}

        def log_metrics(self, metrics, step):
            self.found.setdefault(step, {}).update(metrics)

        def log_hyperparams(self, *args, **kwargs):
            pass

    class GAN(LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.G, self.D, *self.made = players()

        def configure_optimizers(self):
            return self.made

        def training_step(self, batch):
            opt_G, opt_D = self.optimizers()
            self.unrolled = UnrolledGeneratorLoss(self.D, opt_D, *non_saturating, steps=2)
            return {"unrolled": iteration(self.G, self.D, opt_G, opt_D, self.unrolled, batch)}

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logger, model = Kept(), GAN()
    logger.found = {}
    torch.manual_seed(1)
    data = [torch.randn(6, 2) for _ in range(10)]
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=1,
            log_every_n_steps=1,
            logger=logger,
            callbacks=callbacks,
            barebones=False,
            **quiet,
        )
        trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=None))
    return model.G.weight.detach(), {step: kept for step, kept in logger.found.items() if NAMES <= set(kept)}


def test_the_lightning_callback():
    """At the first, the fifth and the ninth batch; training goes on to the last bit as without it."""
    from lightning_callback import LogDiagnosis

    weight, logged = with_lightning([LogDiagnosis(every=4)])
    assert len(logged) == 3
    assert all(kept["unroll/steps"] == 2 and 0 < kept["unroll/share"] < 1 for kept in logged.values())
    plain, nothing = with_lightning([])
    assert torch.equal(weight, plain) and not nothing


def test_a_fake_cut_from_its_generator_is_diagnosed_the_same():
    """What both rely on: the norms are those with respect to fake."""
    G, D, _, opt_D = players()
    unrolled = UnrolledGeneratorLoss(D, opt_D, *non_saturating, steps=2)
    real, fake = torch.randn(6, 2), G(torch.randn(6, 4))
    ours, its = diagnose(unrolled, real, fake.detach().requires_grad_()), diagnose(unrolled, real, fake)
    assert (ours.first_term, ours.second_term, ours.cosine) == (its.first_term, its.second_term, its.cosine)


def test_the_files_in_the_docs_are_up_to_date():
    """Otherwise: python hosts/recipes.py --write."""
    text = recipes.DOCS.read_text(encoding="utf-8")
    for name in recipes.FILES:
        assert recipes.documented(text, name) == recipes.listing(name)
    assert recipes.documented(text.replace("class Log", "class Logs"), "ignite_handler") != recipes.listing(
        "ignite_handler"
    )
