"""Several players move: the value is that of real updates, the gradient that of differences, and nothing is moved."""

import copy
from functools import partial

import pytest
import torch
from games import Game, after, trained, warm_game
from snapshot import changed, snapshot
from torch import nn

from unroll_wrap import (
    Compiled,
    Extrapolate,
    Recompute,
    SecondTermMissing,
    Store,
    Truncate,
    UnrolledDiscriminatorLoss,
    UnrolledGeneratorLoss,
    UnrolledLoss,
    UnrolledSequence,
    diagnose,
    predict,
    verify,
)

SEQUENCES = [("D", "G"), ("G", "D"), ("D",), ("G",)]
ORDERED = [(order, names) for order in ("alternating", "simultaneous") for names in SEQUENCES]
ORDERED += [("alternating", ("D", "D", "G"))]


def sequence_of(game, names, asker, **options):
    """The loss of `asker` after rounds of updates of the named players."""
    losses = game.losses()
    updates = [(getattr(game, name), getattr(game, f"opt_{name}"), losses[name]) for name in names]
    return UnrolledSequence(updates, losses[asker], getattr(game, asker), **options)


def slope(game, asker, value, shift=1e-5):
    """The derivative of `value` along a random direction of the asker's parameters, and that direction."""
    params = trained(getattr(game, asker))
    way = [torch.randn(p.shape, generator=torch.Generator().manual_seed(1)).to(p) for p in params]
    found = []
    for sign in (1, -1):
        moved = copy.deepcopy(game)
        with torch.no_grad():
            for p, w in zip(trained(getattr(moved, asker)), way, strict=True):
                p.add_(w, alpha=sign * shift)
        found.append(value(moved))
    return (found[0] - found[1]) / (2 * shift), way


def assert_exact(game, asker, loss, value, names=("D", "G")):
    """Value to 1e-12, gradient to 1e-7 of its length, none for the other players that move."""
    expected, way = slope(game, asker, value)
    assert abs(loss.item() - value(game)) < 1e-12
    loss.backward()
    grads = [p.grad for p in trained(getattr(game, asker))]
    length = sum(g.square().sum() for g in grads if g is not None) ** 0.5
    along = sum((g * w).sum() for g, w in zip(grads, way, strict=True) if g is not None)
    assert abs(along - expected) < 1e-7 * max(length, 1e-3)
    assert all(p.grad is None for name in {*names} - {asker} for p in getattr(game, name).parameters())
    return grads


@pytest.mark.parametrize("asker", ["G", "D", "encoder"])
@pytest.mark.parametrize(("order", "names"), ORDERED)
def test_sequences_are_exact(order, names, asker):
    """Every order, sequence and asker, whether it moves or not; the control: without the second term it is not."""
    game = warm_game(norm=True)
    before = snapshot(game)
    loss = sequence_of(game, names, asker, order=order, steps=2)(*game.batch)
    if "G" in names:  # the batch statistics of a generator that does not move are the loop's own
        assert not changed(before, snapshot(game))
    grads = assert_exact(game, asker, loss, lambda g: after(g, order, names, 2, asker)[-1], names)
    first = sequence_of(game, names, asker, order=order, steps=2, stop_gradient=True)(*game.batch)
    params = list(getattr(game, asker).parameters())
    control = torch.autograd.grad(first, params, allow_unused=True)
    both = [(a, b) for a, b in zip(grads, control, strict=True) if a is not None and b is not None]
    gap, length = sum((a - b).square().sum() for a, b in both), sum(a.square().sum() for a, _ in both)
    assert gap**0.5 > 1e-3 * length**0.5


@pytest.mark.parametrize("optimizers", [("sgd", "adam"), ("stranger", "adam"), ("adam", "stranger")], ids="-".join)
@pytest.mark.parametrize("order", ["alternating", "simultaneous"])
def test_optimizers_rest_while_others_move(order, optimizers):
    """Momentum, decay and counters of a player that rests stay as they are, traced optimizers' too."""
    game = warm_game(optimizers)
    unrolled = sequence_of(game, ("D", "G"), "G", order=order, steps=2)
    assert_exact(game, "G", unrolled(*game.batch), lambda g: after(g, order, ("D", "G"), 2, "G")[-1])


@pytest.mark.parametrize("order", ["alternating", "simultaneous"])
def test_players_may_share_what_no_optimizer_moves(order):
    """A pretrained layer, with statistics, at the end of G and at the front of D."""
    game = warm_game()
    shared = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, momentum=0.3)).double().requires_grad_(False)
    game.G, game.D.body = nn.Sequential(game.G, shared), nn.Sequential(shared, game.D.body)
    before = snapshot(game)
    loss = sequence_of(game, ("D", "G"), "G", order=order, steps=2)(*game.batch)
    assert not changed(before, snapshot(game))
    assert_exact(game, "G", loss, lambda g: after(g, order, ("D", "G"), 2, "G")[-1])


@pytest.mark.parametrize("every", [1, 2, 3])
def test_recompute_gives_the_same(every):
    """Replayed steps of several players."""
    game = warm_game(norm=True)
    stored, replayed = (
        torch.autograd.grad(
            sequence_of(game, ("D", "G"), "G", steps=2, backward=backward)(*game.batch), list(game.G.parameters())
        )
        for backward in (Store(), Recompute(every))
    )
    assert all(torch.allclose(a, b, rtol=1e-12, atol=0) for a, b in zip(stored, replayed, strict=True))


@pytest.mark.parametrize("steps", [0, 1, 2])
@pytest.mark.parametrize("names", [("D", "G"), ("G", "D"), ("D",)], ids="".join)
def test_level_k_starts_every_move_anew(names, steps):
    """Each player moves from where it stands now, against the others where they have got to; the first term alone."""
    game = warm_game()
    loss = sequence_of(game, names, "G", order="level-k", stop_gradient=True, steps=steps)(*game.batch)
    assert abs(loss.item() - after(game, "level-k", names, steps, "G")[-1]) < 1e-12
    moved = copy.deepcopy(game)
    reached = after_players(moved, names, steps)
    expected = torch.autograd.grad(reached.g_loss(reached.G, *game.batch), list(reached.G.parameters()))
    found = torch.autograd.grad(loss, list(game.G.parameters()))
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-14) for a, b in zip(found, expected, strict=True))


def after_players(game: Game, names, steps) -> Game:
    """The players that level-k reasoning arrives at, G at its start."""
    real = copy.deepcopy(game)
    for _ in range(steps):
        for name in names:
            getattr(real, name).load_state_dict(getattr(game, name).state_dict())
            getattr(real, f"opt_{name}").load_state_dict(copy.deepcopy(getattr(game, f"opt_{name}").state_dict()))
            real.step(name)
    real.G.load_state_dict(game.G.state_dict())
    return real


@pytest.mark.parametrize("average", [True, Extrapolate(2.5), Extrapolate(-1.0)])
def test_weighted_sums_over_rounds(average):
    """The mean over rounds, and a point on the line from the plain loss."""

    def value(game):
        start, *rest = after(game, "alternating", ("D", "G"), 2, "G")
        return sum(rest) / 2 if average is True else start + average.factor * (rest[-1] - start)

    game = warm_game()
    assert_exact(game, "G", sequence_of(game, ("D", "G"), "G", steps=2, average=average)(*game.batch), value)


def test_a_batch_for_each_round():
    """`resample` gives one batch a round, which all players share; the returned loss takes the call's."""
    game = warm_game()
    batches = [(game.batch[0] * 0.5, game.batch[1] + 1), (game.batch[0] - 1, -game.batch[1])]
    loss = sequence_of(game, ("D", "G"), "G", steps=2, resample=iter(batches))(*game.batch)
    value = after(game, "alternating", ("D", "G"), 2, "G", batches)[-1]
    assert abs(loss.item() - value) < 1e-12
    assert abs(value - after(game, "alternating", ("D", "G"), 2, "G")[-1]) > 1e-4


def test_no_rounds_are_the_plain_loss():
    """Value and gradient at K = 0 are the asker's own, bit for bit, and nothing warns."""
    game = warm_game()
    found = torch.autograd.grad(sequence_of(game, ("D", "G"), "G", steps=0)(*game.batch), list(game.G.parameters()))
    plain = torch.autograd.grad(game.g_loss(game.G, *game.batch), list(game.G.parameters()))
    assert all(map(torch.equal, found, plain))


@pytest.mark.parametrize("order", ["alternating", "simultaneous", "level-k"])
def test_verify_passes_and_can_fail(order, monkeypatch):
    """`verify` takes real rounds of the live players; a halved cotangent is found."""
    game = warm_game(norm=True)
    first = order == "level-k"
    unrolled = sequence_of(game, ("D", "G"), "G", order=order, steps=2, stop_gradient=first)
    before = snapshot(game)
    report = verify(unrolled, *game.batch)
    assert report.passed, report
    assert not changed(before, snapshot(game))
    from unroll_wrap.unrolling.rounds import Rounds

    finish = Rounds.finish
    monkeypatch.setattr(
        Rounds,
        "finish",
        lambda self, found: finish(self, [[b._replace(params=b.params / 2) for b in c] for c in found]),
    )
    assert not verify(unrolled, *game.batch).passed


def test_diagnose_and_predict_take_sequences():
    """Both terms, and the cost of more rounds."""
    game = warm_game()
    unrolled = sequence_of(game, ("D", "G"), "G", steps=2)
    found = diagnose(unrolled, *game.batch, repeats=0)
    assert found.steps == 2
    assert 0 < found.share < 1
    assert predict(unrolled, *game.batch, steps=10).seconds > 0


def test_an_error_in_the_middle_moves_nothing():
    """G's loss fails in the second round."""
    game, calls = warm_game(norm=True), []

    def fails(G, real, z):
        calls.append(0)
        if len(calls) > 1:
            raise RuntimeError("the user's own")
        return game.g_loss(G, real, z)

    before = snapshot(game)
    updates = [(game.D, game.opt_D, game.d_loss), (game.G, game.opt_G, fails)]
    with pytest.raises(RuntimeError, match="the user's own"):
        UnrolledSequence(updates, game.g_loss, game.G, steps=3)(*game.batch)
    assert not changed(before, snapshot(game))


def bad(game, what):
    """A wrong call of the constructor, by name."""
    D, G, opt_D, opt_G = game.D, game.G, game.opt_D, game.opt_G
    good = [(D, opt_D, game.d_loss), (G, opt_G, game.g_loss)]
    make = partial(UnrolledSequence, good, game.g_loss, G)
    shared = nn.Sequential(G, D.head)
    return {
        "order": lambda: make(order="random"),
        "level-k": lambda: make(order="level-k"),
        "no optimizer": lambda: UnrolledSequence([good[0], (G, None, game.g_loss)], game.g_loss, G),
        "a callable": lambda: UnrolledSequence([(D, partial(torch.optim.Adam), game.d_loss)], game.g_loss, G),
        "shared": lambda: UnrolledSequence(
            [good[0], (shared, torch.optim.SGD(shared.parameters(), 0.1), game.g_loss)], game.g_loss, G
        ),
        "no list": lambda: UnrolledSequence(D, game.g_loss, G),
        "a pair": lambda: UnrolledSequence([(D, opt_D)], game.g_loss, G),
        "the other's optimizer": lambda: UnrolledSequence([(D, opt_G, game.d_loss)], game.g_loss, G),
        "no loss": lambda: UnrolledSequence([(D, opt_D, 3)], game.g_loss, G),
        "a part": lambda: UnrolledSequence(good, game.g_loss, D.head),
        "Truncate": lambda: make(backward=Truncate(1)),
        "Compiled": lambda: make(backward=Compiled()),
        "a transform": lambda: make(grad_transform=lambda grads: grads),
        "twice at once": lambda: UnrolledSequence([good[0], good[0]], game.g_loss, G, order="simultaneous"),
        "a fake": lambda: make()(game.batch[0], game.G(game.batch[1])),
    }[what]


BAD = {
    "order": (ValueError, "order is 'random'. Pass one of 'alternating'"),
    "level-k": (ValueError, "has no second derivatives"),
    "no optimizer": (TypeError, r"updates\[1\] has None for an optimizer"),
    "a callable": (TypeError, r"updates\[0\] has .* for an optimizer"),
    "shared": (ValueError, "Two players share a parameter of shape"),
    "no list": (TypeError, "updates is an instance of Discriminator"),
    "a pair": (TypeError, r"updates\[0\] is a tuple"),
    "the other's optimizer": (ValueError, "none of them is the player of updates.0.'s"),
    "no loss": (TypeError, r"updates\[0\].loss is 3"),
    "a part": (ValueError, "The asker holds some parameters of a player"),
    "Truncate": (TypeError, "A sequence is unrolled by"),
    "Compiled": (TypeError, "A sequence is unrolled by"),
    "a transform": (TypeError, "A sequence takes no grad_transform"),
    "twice at once": (ValueError, "moves twice"),
    "a fake": (ValueError, "has a graph that leads to"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_refused_before_anything_moves(what):
    """Each message says what was given and what to do."""
    game = warm_game()
    before = snapshot(game)
    kind, message = BAD[what]
    with pytest.raises(kind, match=message):
        bad(game, what)()
    assert not changed(before, snapshot(game))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("order", "simultanous", "order is 'simultanous'"),
        ("order", "level-k", "stop_gradient=True"),
        ("grad_transform", lambda grads: grads, "takes no grad_transform"),
        ("backward", Compiled(), "unrolled by Store"),
        ("average", "all", "average is 'all'"),
    ],
)
def test_an_option_set_after_construction_is_checked_in_the_call(name, value, message):
    """As the constructor checks it."""
    game = warm_game()
    unrolled = sequence_of(game, ("D", "G"), "G", steps=2)
    setattr(unrolled, name, value)
    before = snapshot(game)
    with pytest.raises((TypeError, ValueError), match=message):
        unrolled(*game.batch)
    assert not changed(before, snapshot(game))
    with pytest.raises(AttributeError):
        unrolled.updates = []


def test_the_loss_may_be_set_after_construction():
    """It receives the asker, as that of the constructor does."""
    game = warm_game()
    unrolled = sequence_of(game, ("D", "G"), "G", steps=2)
    before = unrolled(*game.batch)
    unrolled.loss = unrolled.loss.loss
    assert torch.equal(unrolled(*game.batch), before)


def test_verify_with_a_hook_on_the_asker():
    """Its steps go by what the hook makes of a gradient, and training goes by it once more, which is no derivative."""
    game = warm_game()
    game.G[0].weight.register_hook(lambda g: g * 0.5)
    assert verify(sequence_of(game, ("D", "G"), "G", steps=2), *game.batch).passed


def test_a_loss_that_freezes_a_player_is_refused():
    """It would cut the derivative by the start of a player in silence."""
    game = warm_game()

    def freezes(D, real, z):
        game.G.requires_grad_(False)
        return game.d_loss(D, real, z)

    updates = [(game.D, game.opt_D, freezes), (game.G, game.opt_G, game.g_loss)]
    with pytest.raises(ValueError, match="switches requires_grad off"):
        UnrolledSequence(updates, game.g_loss, game.G)(*game.batch)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_discriminators_loss_through_the_generators_steps(steps):
    """The roles exchanged, by both names of the class."""
    game = warm_game(norm=True)
    for kind in (UnrolledDiscriminatorLoss, UnrolledLoss):
        game.D.zero_grad()
        unrolled = kind(game.G, game.opt_G, game.g_loss, lambda G, *batch: game.d_loss(game.D, *batch), steps=steps)
        assert_exact(
            game, "D", unrolled(*game.batch), lambda g: after(g, "alternating", ("G",), steps, "D")[-1], ("G",)
        )
        assert verify(unrolled, *game.batch).passed


def test_messages_have_the_names_of_the_players():
    """The generator's steps go by g_loss, and what is missing is the discriminator."""
    game = warm_game()
    unrolled = UnrolledDiscriminatorLoss(
        game.G, game.opt_G, lambda G, real, z: G(z).square().mean(), lambda G, *batch: game.d_loss(game.D, *batch)
    )
    with pytest.warns(SecondTermMissing, match="^g_loss does not depend on the discriminator"):
        unrolled(*game.batch)
    with pytest.raises(ValueError, match="^g_loss at inner step 0"):
        UnrolledDiscriminatorLoss(game.G, game.opt_G, lambda G, *_: torch.zeros(()), game.g_loss)(*game.batch)


@pytest.mark.parametrize("factor", [0.0, 1.0, 3.0])
def test_extrapolate_is_the_line_from_the_plain_loss(factor):
    """g0 + α (g1 - g0), in one call."""
    game = warm_game()
    fake = game.fake(game.batch[1])

    def g_loss(D, real, fake):
        return nn.functional.softplus(-D(fake)).mean()

    def d_loss(D, real, fake):
        return nn.functional.softplus(-D(real)).mean() + nn.functional.softplus(D(fake)).mean()

    def one(**options):
        loss = UnrolledGeneratorLoss(game.D, game.opt_D, d_loss, g_loss, **options)(game.batch[0], fake)
        return loss, torch.autograd.grad(loss, fake, retain_graph=True)[0]

    (value_0, g_0), (value_1, g_1) = one(steps=0), one(steps=1)
    value, g = one(steps=1, average=Extrapolate(factor))
    assert torch.allclose(value, value_0 + factor * (value_1 - value_0), rtol=1e-12)
    assert torch.allclose(g, g_0 + factor * (g_1 - g_0), rtol=1e-10, atol=1e-15)
    unrolled = UnrolledGeneratorLoss(game.D, game.opt_D, d_loss, g_loss, steps=2, average=Extrapolate(factor))
    assert verify(unrolled, game.batch[0], fake).passed


@pytest.mark.parametrize("factor", [True, "2", None, float("nan")])
def test_extrapolate_refuses_what_is_no_number(factor):
    """A factor is a finite number."""
    with pytest.raises(ValueError, match="Pass a finite number"):
        Extrapolate(factor)
    with pytest.raises(TypeError, match="average is"):
        UnrolledGeneratorLoss(nn.Linear(1, 1), lambda p: torch.optim.SGD(p, 0.1), average=2.0)
