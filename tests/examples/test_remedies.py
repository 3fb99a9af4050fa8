"""The study of remedies runs at smoke size, resumes, and reports; and each remedy is what its name says."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="the examples' extra is not installed")
pytest.importorskip("tensorboard", reason="the examples' extra is not installed")

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def examples(monkeypatch):
    for folder in ("examples", "research"):
        monkeypatch.syspath_prepend(str(ROOT / folder))


def test_smoke(tmp_path, capsys, monkeypatch):
    """Three updates of every setting on both mixtures; the report again trains nothing and says the same."""
    from ring_remedies import command
    from ring_remedies.settings import SETTINGS

    options = ["--preset", "smoke", "--out", str(tmp_path)]
    assert command.main([*options, "--report"]) == 1
    assert "nothing to report" in capsys.readouterr().out
    assert command.main(options) == 0
    table = (tmp_path / "table.md").read_text()
    assert table.count("\n| ") >= 2 * len(SETTINGS)
    assert "mean nothing" in table and "Not finished" not in table
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["numbers_mean_nothing"] and summary["not_finished"] == {}
    assert {"command", "machine", "versions", "processor_seconds"} <= set(summary)
    assert [row["setting"] for row in summary["runs"]] == 2 * list(SETTINGS)
    assert all(row["updates"] == [3] and row["stopped"] == [None] for row in summary["runs"])
    assert (tmp_path / "figure.png").stat().st_size > 10_000

    monkeypatch.setattr(command, "train", lambda *_: pytest.fail("a finished run was trained again"))
    assert command.main(options) == 0
    assert (tmp_path / "table.md").read_text() == table

    next((tmp_path / "runs").glob("square-R1-seed*.json")).unlink()
    assert command.main([*options, "--report"]) == 0
    assert "Not finished: square, R1 (0 of 1 seeds)" in (tmp_path / "table.md").read_text()


def test_cost(tmp_path):
    """A row a setting, in units of the plain update."""
    from ring_remedies.command import main
    from ring_remedies.settings import SETTINGS

    assert main(["--preset", "smoke", "--out", str(tmp_path), "--cost"]) == 0
    found = json.loads((tmp_path / "cost.json").read_text())["ms_per_update"]
    assert list(found) == list(SETTINGS) and all(0 < ms < float("inf") for ms in found.values())
    table = (tmp_path / "cost.md").read_text()
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == list(SETTINGS)


def test_no_setting_is_another_by_mistake():
    """After three updates from the same seed no two settings have the same generator."""
    from ring_remedies.settings import SETTINGS
    from ring_remedies.training import Config, Run, minibatches, players_of

    config = Config(batch=8, g_hidden=(8,), d_hidden=(8,))

    def trained(setting):
        run = Run("ring", setting, 0, 1e-2)
        players = players_of(run, config)
        update, batches = SETTINGS[setting].start(players), minibatches(run, config)
        for _ in range(3):
            update(*next(batches))
        return torch.cat([p.detach().flatten() for p in players.G.parameters()])

    found = {setting: trained(setting) for setting in SETTINGS}
    assert torch.equal(trained("plain"), found["plain"])
    names = list(found)
    for i, one in enumerate(names):
        for other in names[:i]:
            assert (found[one] - found[other]).abs().max() > 1e-6, f"{one} is {other}"


def bilinear():
    """d_loss = -x y and g_loss = x y, whose v, H and optimum are known: v = (-y, x) for (x of D, y of G)."""
    x, y = torch.tensor([0.3], requires_grad=True), torch.tensor([0.7], requires_grad=True)
    v = [
        *torch.autograd.grad((-x * y).sum(), [x], create_graph=True),
        *torch.autograd.grad((x * y).sum(), [y], create_graph=True),
    ]
    return v, [x, y]


def test_consensus_and_symplectic_by_hand():
    """In the bilinear game both corrections are (x, y) itself, so that descent leads to the equilibrium at 0."""
    from ring_remedies.games import consensus, symplectic

    for adjusted in (consensus, symplectic):
        v, at = bilinear()
        for direction, plain, place in zip(adjusted(v, at), v, at, strict=True):
            assert torch.allclose(direction - plain, place)


def test_optimistic_adam_by_hand():
    """Twice Adam's step less the one before, by torch's own Adam on the same gradients."""
    from ring_remedies.optimistic import OptimisticAdam

    torch.manual_seed(0)
    start, gradients = torch.randn(3), torch.randn(4, 3)
    adam, ours = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizers = [torch.optim.Adam([adam], 0.1, (0.5, 0.999)), OptimisticAdam([ours], 0.1, (0.5, 0.999))]
    expected, last = start.clone(), torch.zeros(3)
    for gradient in gradients:
        before = adam.detach().clone()
        adam.grad, ours.grad = gradient.clone(), gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
        taken = adam.detach() - before
        expected, last = expected + 2 * taken - last, taken
        assert torch.allclose(ours.detach(), expected, atol=1e-6)


def test_unrolled_optimistic_adam_is_exact():
    """The library's own check of the rule: K real steps, and finite differences of the gradient."""
    from ring_remedies.optimistic import OptimisticAdam
    from unroll_wrap import UnrolledGeneratorLoss, non_saturating, verify

    torch.manual_seed(0)
    G, D = (
        torch.nn.Linear(3, 2).double(),
        torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double(),
    )
    opt_D = OptimisticAdam(D.parameters(), 1e-2, (0.5, 0.999))
    real, z = torch.randn(16, 2, dtype=torch.float64), torch.randn(16, 3, dtype=torch.float64)
    for _ in range(3):
        opt_D.zero_grad()
        non_saturating.d_loss(D, real, G(z).detach()).backward()
        opt_D.step()
    assert verify(UnrolledGeneratorLoss(D, opt_D, *non_saturating, steps=3), real, G(z)).passed
