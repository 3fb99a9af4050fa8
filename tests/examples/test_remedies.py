"""The study of remedies runs at smoke size, resumes, and reports; and each remedy is what its name says."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="the examples' extra is not installed")
pytest.importorskip("tensorboard", reason="the examples' extra is not installed")

ROOT = Path(__file__).parents[2]
# Who unrolls G's Adam before its first step is told so. Here that is the first of many updates.
pytestmark = pytest.mark.filterwarnings("ignore:Adam starts from empty state")


@pytest.fixture(autouse=True)
def examples(monkeypatch):
    for folder in ("examples", "research"):
        monkeypatch.syspath_prepend(str(ROOT / folder))


@pytest.fixture
def tasks(mnist, tmp_path):
    """The smallest ring and the smallest stacked digits."""
    from remedy.command import PRESETS

    found = [PRESETS["smoke"].task(name, tmp_path, mnist) for name in ("ring", "digits")]
    for task in found:
        task.load()
    return found


def test_smoke(mnist, tmp_path, capsys, monkeypatch):
    """Three updates of every setting on every task; the report again trains nothing and says the same."""
    from remedy import command
    from remedy.settings import SETTINGS

    options = ["--preset", "smoke", "--out", str(tmp_path), "--data", str(mnist)]
    assert command.main([*options, "--report"]) == 1
    assert "nothing to report" in capsys.readouterr().out
    assert command.main(options) == 0
    table = (tmp_path / "table.md").read_text()
    assert all(
        f"## {name}" in table for name in ("All", "ring, 8", "square, 25", "digits, 1,000", "digits-fast-D, 1,000")
    )
    assert "mean nothing" in table and "Not finished" not in table
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["numbers_mean_nothing"] and summary["not_finished"] == {}
    assert {"command", "machine", "versions", "processor_seconds"} <= set(summary)
    assert [row["setting"] for row in summary["runs"]] == 4 * list(SETTINGS)
    rates = {(row["data"], row["d_lr"]) for row in summary["runs"] if row["data"].startswith("digits")}
    assert rates == {("digits", 4e-4), ("digits-fast-D", 2e-3)}
    assert all(row["updates"] == [3] and row["stopped"] == [None] for row in summary["runs"])
    assert (tmp_path / "figure.png").stat().st_size > 10_000

    monkeypatch.setattr(command, "train", lambda *_: pytest.fail("a finished run was trained again"))
    assert command.main(options) == 0
    assert (tmp_path / "table.md").read_text() == table

    next((tmp_path / "runs").glob("square-R1-seed*.json")).unlink()
    assert command.main([*options, "--report"]) == 0
    assert "Not finished:\n\n- square, 0 of 1 seeds: R1\n" in (tmp_path / "table.md").read_text()


def test_no_digits_no_run(tmp_path, capsys, monkeypatch):
    """Where the digits cannot be had, the program ends before anything is trained, and names the folder."""
    from remedy import command

    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    for name in ("train-images", "train-labels", "t10k-images", "t10k-labels"):
        (tmp_path / "MNIST" / "raw" / f"{name}-idx{3 if 'images' in name else 1}-ubyte").write_bytes(b"no digits")
    monkeypatch.setattr(command, "train", lambda *_: pytest.fail("trained"))
    with pytest.raises(SystemExit):
        command.main(["--preset", "smoke", "--out", str(tmp_path / "out"), "--data", str(tmp_path)])
    assert str(tmp_path / "MNIST") in capsys.readouterr().err


def test_cost(tmp_path):
    """A row a setting, in units of the plain update."""
    from remedy.command import main
    from remedy.settings import SETTINGS

    assert main(["--preset", "smoke", "--out", str(tmp_path), "--cost"]) == 0
    found = json.loads((tmp_path / "cost.json").read_text())["ms_per_update"]
    assert list(found) == list(SETTINGS)
    assert all(0 < ms < float("inf") for ms in found.values())
    table = (tmp_path / "cost.md").read_text()
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == list(found)


def test_no_setting_is_another_by_mistake(tasks):
    """After three updates from the same seed no two settings have the same generator."""
    from remedy.settings import SETTINGS
    from remedy.training import Run, players_of

    def trained(task, setting):
        players = players_of(Run(task.name, setting, 0, 1e-2), task)
        update, batches = SETTINGS[setting].start(players), task.minibatches(0)
        for _ in range(3):
            update(*next(batches))
        return torch.cat([p.detach().flatten() for p in players.G.parameters()])

    for task in tasks:
        found = {setting: trained(task, setting) for setting in SETTINGS}
        assert torch.equal(trained(task, "plain"), found["plain"])
        names = list(found)
        for i, one in enumerate(names):
            for other in names[:i]:
                assert (found[one] - found[other]).abs().max() > 1e-6, f"{task.name}: {one} is {other}"


def test_each_half_of_a_batch_has_its_own_spread():
    """Real samples beside fakes that are all alike: the feature tells one half from the other."""
    from remedy.discriminators import BatchSpread

    torch.manual_seed(0)
    real, fake = torch.randn(4, 3), torch.ones(4, 3)
    found = BatchSpread(4)(torch.cat([real, fake]))
    assert torch.equal(found[:, :3], torch.cat([real, fake]))
    assert torch.allclose(found[:4, 3], real.std(dim=0, unbiased=False).mean().expand(4))
    assert torch.allclose(found[4:, 3], torch.tensor(1e-4))


def test_packing_pairs_samples_of_one_kind(tasks):
    """Half as many logits, each of two neighbours, so that no pair has a real sample and a fake."""
    from remedy.discriminators import packed

    for task in tasks:
        D = packed(task).eval()
        torch.manual_seed(0)
        (real, z), _ = next(task.minibatches(0))
        fake = task.generator()(z).detach()
        logits = D(torch.cat([real, fake]))
        assert len(logits) == len(real)
        assert torch.allclose(logits[: len(real) // 2], D(real), atol=1e-6)


def test_r1_is_taken_where_D_is_played(tasks):
    """γ/2 · E ‖∇D(real)‖² by finite differences of D on its whole batch, fakes included where they share it."""
    from remedy.penalties import r1

    for task in tasks:
        torch.manual_seed(0)
        D = task.discriminator().double()
        (real, z), _ = next(task.minibatches(0))
        fake = task.generator()(z).detach().double()
        real = real.double()

        def total(x, D=D, fake=fake, task=task):
            return D(torch.cat([x, fake]))[: len(x)].sum() if task.one_batch else D(x).sum()

        along = torch.randn_like(real)
        size = 1e-6
        with torch.no_grad():
            expected = (total(real + size * along) - total(real - size * along)) / (2 * size)
        x = real.clone().requires_grad_()
        (slope,) = torch.autograd.grad(total(x), x)
        assert torch.allclose((slope * along).sum(), expected, rtol=1e-5)
        norms = slope.flatten(1).square().sum(1)
        assert torch.allclose(r1(task)(D, real, fake), task.r1_weight / 2 * norms.mean())


def test_consensus_and_symplectic_by_hand():
    """In the bilinear game both corrections are (x, y) itself, so that descent leads to the equilibrium at 0."""
    from remedy.games import consensus, symplectic

    def directions(of_D, of_G):
        (x,), (y,) = of_D, of_G
        return [
            *torch.autograd.grad((-x * y).sum(), [x], create_graph=True),
            *torch.autograd.grad((x * y).sum(), [y], create_graph=True),
        ]

    for adjusted in (consensus, symplectic):
        x, y = (torch.tensor(value, requires_grad=True) for value in ([1.0, -2.0], [0.5, 3.0]))
        for direction, plain, place in zip(adjusted(directions, [x], [y]), directions([x], [y]), (x, y), strict=True):
            assert torch.allclose(direction - plain, place)


def test_optimistic_adam_by_hand():
    """Twice Adam's step less the one before, by torch's own Adam on the same gradients."""
    from remedy.optimistic import OptimisticAdam

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
    from remedy.optimistic import OptimisticAdam
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
