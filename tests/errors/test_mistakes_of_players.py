"""Mistakes with several players: refused by name, or right; each with the control that is not refused."""

import pytest
import torch
from games import Game, warm_game
from snapshot import changed, snapshot
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from unroll_wrap import (
    Compiled,
    Extrapolate,
    FiniteDifference,
    Recompute,
    SecondTermMissing,
    UnrolledDiscriminatorLoss,
    UnrolledGeneratorLoss,
    UnrolledSequence,
    detach,
    diagnose,
    verify,
)


def updates_of(game: Game, d_loss=None, g_loss=None):
    return [(game.D, game.opt_D, d_loss or game.d_loss), (game.G, game.opt_G, g_loss or game.g_loss)]


def of_D(game, g_loss=None, d_loss=None, **options):
    """D's loss through the steps of G."""
    mine = d_loss or (lambda G, *batch: game.d_loss(game.D, *batch))
    return UnrolledDiscriminatorLoss(game.G, game.opt_G, g_loss or game.g_loss, mine, **options)


def refused(game, act, kind, message):
    before = snapshot(game)
    with pytest.raises(kind, match=message):
        act()
    assert not changed(before, snapshot(game))


def grads(loss, module):
    return [g for g in torch.autograd.grad(loss, list(module.parameters()), allow_unused=True) if g is not None]


@pytest.mark.parametrize("where", ["an update", "the returned loss"])
def test_a_fake_made_before_the_call_is_refused_where_its_generator_moves(where):
    """Its graph leads to G as it was: the derivative by G's start would lack it. Detached, it is a constant."""
    game = warm_game()
    kept = [game.fake(game.batch[1])]

    def with_kept(player, real, z):
        return (game.d_loss if player is game.D else game.g_loss)(player, real, z) + softplus(game.D(kept[0])).mean()

    first = where == "an update"
    updates = updates_of(game, with_kept if first else None)
    unrolled = UnrolledSequence(updates, game.g_loss if first else with_kept, game.G, steps=2)
    named = r"updates\[0\].loss in round 0" if first else "loss"
    refused(game, lambda: unrolled(*game.batch), ValueError, f"^{named} captures a tensor whose graph leads to")
    kept[0] = kept[0].detach()
    assert verify(unrolled, *game.batch).passed


def test_a_tensor_made_before_cuts_no_other_gradient():
    """The returned loss of D looks at an old fake too: D's gradient is that with a constant, not a part of it."""
    game = warm_game()
    kept = game.fake(game.batch[1])

    def found(old):
        def d_loss(G, *batch):
            return game.d_loss(game.D, *batch) + softplus(game.D(old)).mean()

        return grads(of_D(game, d_loss=d_loss, steps=2)(*game.batch), game.D)

    one, other = found(kept), found(kept.detach())
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-15) for a, b in zip(one, other, strict=True))
    control = grads(of_D(game, steps=2)(*game.batch), game.D)
    assert not all(torch.allclose(a, b) for a, b in zip(one, control, strict=True))


class Squared(torch.autograd.Function):
    """Without a second derivative, which autograd does not say of its own accord."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0]


def test_an_operator_without_second_derivative_is_refused_in_every_update():
    """It would be a constant in silence; with the first term alone it is fine."""
    game = warm_game()

    def d_loss(D, real, z):
        return softplus(-D(real)).mean() + Squared.apply(D(game.fake(z))).mean()

    def make(**options):
        return UnrolledSequence(updates_of(game, d_loss), game.g_loss, game.G, steps=2, **options)

    refused(
        game, lambda: make()(*game.batch), RuntimeError, r"^Differentiating updates\[0\].loss in round 0: .*Squared"
    )
    assert make(stop_gradient=True)(*game.batch).isfinite()


def test_a_frozen_asker_is_told():
    """A loss whose backward pass gives nobody a gradient is none."""
    game = warm_game()
    game.encoder.requires_grad_(False)
    unrolled = UnrolledSequence(updates_of(game), game.g_loss, game.G, steps=1)
    assert unrolled(*game.batch).requires_grad
    game.G.requires_grad_(False)
    refused(game, lambda: unrolled(*game.batch), ValueError, "Neither loss depends on the asker")


def test_a_call_may_replace_the_loss_and_not_the_updates():
    """The loss gets the asker first, as at construction."""
    game = warm_game()
    unrolled = UnrolledSequence(updates_of(game), game.g_loss, game.G, steps=2)

    def twice(G, *batch):
        assert G is game.G
        return 2 * game.g_loss(G, *batch)

    assert torch.equal(unrolled(*game.batch, loss=twice), 2 * unrolled(*game.batch))
    assert verify(unrolled, *game.batch, loss=twice).passed
    refused(game, lambda: unrolled(*game.batch, updates=updates_of(game)), TypeError, "A call got updates")


def test_exchanged_losses_are_told_for_either_player():
    """By the names of their functions; the order of the arguments is not the same for both players."""
    game = warm_game()

    def d_loss(G, real, z):
        return game.d_loss(game.D, real, z)

    def g_loss(G, real, z):
        return game.g_loss(G, real, z)

    assert of_D(game, g_loss, d_loss)(*game.batch).isfinite()
    exchanged = of_D(game, d_loss, g_loss)
    refused(game, lambda: exchanged(*game.batch), ValueError, "g_loss is a function named d_loss")


@pytest.mark.parametrize("passed", ["in no list", "in a list"])
@pytest.mark.parametrize("built", ["frozen in part", "frozen"])
def test_frozen_parameters_stay_where_they_are_in_real_steps_too(built, passed):
    """Those of one layer do not move, as in a call; a player that is frozen as a whole is only resting."""
    game = warm_game()
    game.opt_D = torch.optim.SGD(game.D.parameters(), 0.1, momentum=0.9)
    (game.D.body if built == "frozen in part" else game.D).requires_grad_(False)
    D = game.D if passed == "in no list" else [game.D]

    def d_loss(_, *batch):
        return game.d_loss(game.D, *batch)

    updates = [(D, game.opt_D, d_loss), (game.G, game.opt_G, game.g_loss)]
    unrolled = UnrolledSequence(updates, game.g_loss, game.G, steps=2)
    assert verify(unrolled, *game.batch).passed
    value = unrolled(*game.batch).item()
    game.D.requires_grad_(True)
    whole = UnrolledSequence(updates, game.g_loss, game.G, steps=2)(*game.batch).item()
    assert (value == whole) is (built == "frozen")


def test_verify_looks_at_losses_that_move_players_in_lists():
    """What the asker's list holds is found, and a network that one update's loss alone captures."""
    game = warm_game()
    lists = [([game.D], game.opt_D, lambda Ds, *batch: game.d_loss(Ds[0], *batch))]
    lists += [({"g": game.G}, game.opt_G, lambda Gs, real, z: softplus(-game.D(Gs["g"](z))).mean())]
    report = verify(UnrolledSequence(lists, lists[1][2], {"g": game.G}, steps=2), *game.batch)
    assert report.passed
    assert report.slopes


MESSAGES = {
    "no module": (lambda g: UnrolledDiscriminatorLoss(g.opt_G, g.G, g.g_loss, g.d_loss), "^generator is an instance"),
    "D's optimizer": (
        lambda g: UnrolledDiscriminatorLoss(g.G, g.opt_D, g.g_loss, g.d_loss),
        "none of them is the generator's",
    ),
    "an old fake": (
        lambda g: of_D(g, lambda G, real, fake: g.D(fake).mean())(g.batch[0], g.G(g.batch[1])),
        "leads to G's parameters alone, .*detach it.$",
    ),
    "not finite": (
        lambda g: of_D(g, lambda *batch: g.g_loss(*batch) / 0)(*g.batch),
        "^g_loss at inner step 0 is inf; g_loss along the steps: .*Lower the generator's learning rate",
    ),
    "no replay": (
        lambda g: of_D(g, growing(g), backward=Recompute(), steps=2)(*g.batch),
        "^g_loss at inner step 1 was",
    ),
    "no replay of all at once": (
        lambda g: UnrolledSequence(
            updates_of(g, g_loss=growing(g)), g.g_loss, g.G, order="simultaneous", backward=Recompute(), steps=2
        )(*g.batch),
        r"^updates\[0\].loss in round 1 \+ updates\[1\].loss in round 1 was",
    ),
    "another loss": (
        lambda g: UnrolledSequence(updates_of(g, lambda D, real: D(real).mean()), g.g_loss, g.G)(*g.batch),
        r"^updates\[0\].loss does not fit this call",
    ),
    "no asker": (lambda g: UnrolledSequence(updates_of(g), g.g_loss, None), "^asker is None"),
    "no player": (lambda g: UnrolledSequence([(3, g.opt_D, g.d_loss)], g.g_loss, g.G), r"^updates\[0\].player is 3"),
}


def test_messages_name_the_generator_where_it_moves(caplog):
    """Not D: an unroll in an unroll, a loss that does not fit, one that writes, and what Compiled logs."""
    game = warm_game()
    unrolled = of_D(game, lambda G, *batch: unrolled(*batch), steps=2)
    refused(game, lambda: unrolled(*game.batch), RuntimeError, r"^This generator \(\w+\) is being unrolled already")
    misfit = of_D(game, lambda G, real: G(real).mean(), steps=2)
    words = (
        r"^g_loss does not fit this call: .* as g_loss\(G, \*batch, \*\*kwargs\), here with G, .*unrolled\(real, z\)"
    )
    refused(game, lambda: misfit(*game.batch), TypeError, words)

    def writing(G, *batch):
        for p in G.parameters():
            p.data.mul_(0.9)
        return game.g_loss(G, *batch)

    refused(
        game, lambda: of_D(game, writing)(*game.batch), ValueError, "^g_loss at inner step 1 writes to parameters of G"
    )
    hook = next(game.G.parameters()).register_hook(lambda g: g)
    of_D(game, backward=Compiled(), steps=1)(*game.batch)
    hook.remove()
    assert "g_loss is not compiled but run as it is: ValueError: G's parameters have gradient hooks" in caplog.text
    sequence = UnrolledSequence(updates_of(game, lambda D, *batch: sequence(*batch)), game.g_loss, game.G, steps=2)
    refused(game, lambda: sequence(*game.batch), RuntimeError, r"^This player \(\w+\) is being unrolled already")


def test_a_missing_second_term_is_told_of_a_sequence():
    """In words that fit any number of players."""
    game = warm_game()
    lone = UnrolledSequence(updates_of(game)[:1], lambda E, real, z: E(z).square().mean(), game.encoder, steps=1)
    with pytest.warns(SecondTermMissing, match="^loss does not depend on a player that is unrolled"):
        lone(*game.batch)


def growing(game):
    """G's loss, which grows by each call."""
    calls = []

    def g_loss(G, *batch):
        calls.append(0)
        return game.g_loss(G, *batch) * len(calls)

    return g_loss


@pytest.mark.parametrize("mistake", MESSAGES)
def test_messages_name_the_player_and_the_loss(mistake):
    """Never the other player's."""
    game = warm_game()
    act, message = MESSAGES[mistake]
    refused(game, lambda: act(game), (TypeError, ValueError, RuntimeError), message)


def test_the_advice_is_about_the_player_that_moves():
    """G's learning rate, where G moves; and none about a growing loss, where each player has its own."""
    game = warm_game()
    game.opt_G = torch.optim.SGD(game.G.parameters(), 1.0)

    def g_loss(G, *batch):
        return game.g_loss(G, *batch) + 10 * G(batch[1]).square().mean()

    report = str(diagnose(of_D(game, g_loss, steps=3), *game.batch, repeats=0))
    assert "  g_loss  " in report
    assert "g_loss grows along the inner steps: G's learning rate is too high" in report
    sequence = UnrolledSequence(updates_of(game)[::-1], game.g_loss, game.G, steps=3)
    assert "grows" not in diagnose(sequence, *game.batch, repeats=0).advice


def test_the_ends_of_the_line():
    """At factor 1 the loss at the start is not drawn for, and at 0 no second term is missed."""
    game = warm_game()
    D = nn.Sequential(game.D.body, nn.Dropout(0.5), game.D.head)
    opt_D = torch.optim.SGD(D.parameters(), 0.1)

    def found(**options):
        torch.manual_seed(0)
        losses = (
            (lambda D, real, z: game.d_loss(game.D, real, z) + D(real).mean()),
            (lambda D, real, z: D(game.G(z)).mean()),
        )
        return UnrolledGeneratorLoss(D, opt_D, *losses, steps=2, **options)(*game.batch)

    assert torch.equal(found(), found(average=Extrapolate(1.0)))
    assert not torch.equal(found(), found(average=Extrapolate(0.9)))
    plain = found(average=Extrapolate(0.0), backward=FiniteDifference())
    torch.manual_seed(0)
    assert torch.equal(plain, D(game.G(game.batch[1])).mean())


def test_detach_of_what_the_moving_player_computes_is_refused():
    """What the other player computes is the control: D's loss detaches it in training, and not in an unroll."""
    game = warm_game()

    def own(player, real, z):
        return game.d_loss(player, real, z) + detach(game.D(real)).mean()

    def others(player, real, z):
        return softplus(-game.D(real)).mean() + softplus(game.D(detach(game.fake(z)))).mean()

    def act(d_loss):
        return UnrolledSequence(updates_of(game, d_loss), game.g_loss, game.G, steps=2)(*game.batch)

    refused(game, lambda: act(own), ValueError, r"^updates\[0\].loss in round 0 gives unroll_wrap\.detach something")
    assert grads(act(others), game.G)
