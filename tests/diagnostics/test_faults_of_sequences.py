"""verify has to fail wherever a sequence is wrong: one fault a row, each beside the same call without it."""

import pytest
from games import warm_game
from snapshot import changed, snapshot

from unroll_wrap import UnrolledSequence, verify
from unroll_wrap.evaluation import evaluate
from unroll_wrap.unrolling.rounds import Rounds

FAULTS = {}


def fault(order="alternating", asker="G"):
    def enter(plant):
        FAULTS[plant.__name__] = plant, order, asker
        return plant

    return enter


def instead(patch, method, change):
    """Put `change(the old method, self, *arguments)` in the place of a method of Rounds."""
    old = getattr(Rounds, method)
    patch.setattr(Rounds, method, lambda self, *given, **named: change(old, self, *given, **named))


def resting(cotangent, step):
    """The blocks of players that do not move in a step, without the derivative of their state."""
    moved = {i for i, g in enumerate(step.update.grads) if g is not None}
    return [b if moved & set(b.index) else b._replace(state=tuple(None for _ in b.state)) for b in cotangent]


@fault()
def a_hook_is_lost(patch):
    patch.setattr(evaluate, "gradient_hooks", lambda p: [])


@fault()
def a_step_too_few(patch):
    def stays(old, self, point, k, *given, **named):
        following, step = old(self, point, k, *given, **named)
        return (point if k == 3 else following), step

    instead(patch, "step", stays)


@fault()
def the_start_in_place_of_the_point(patch):
    instead(
        patch, "_part", lambda old, self, point, *given: old(self, point._replace(blocks=self.start.blocks), *given)
    )


@fault()
def a_halved_cotangent(patch):
    def halved(old, self, step, cotangent, first):
        found = old(self, step, cotangent, first)
        return found and [b if b.params is None else b._replace(params=b.params / 2) for b in found]

    instead(patch, "pullback", halved)


@fault()
def the_state_of_a_resting_player_is_dropped(patch):
    instead(
        patch, "pullback", lambda old, self, step, cotangent, first: old(self, step, resting(cotangent, step), first)
    )


@fault()
def the_start_of_the_asker_is_dropped(patch):
    patch.setattr(Rounds, "finish", lambda self, found: None)


@fault(order="simultaneous")
def one_player_after_the_other(patch):
    patch.setattr(UnrolledSequence, "round", property(lambda self: len(self.updates)))
    old = UnrolledSequence.unroll

    def unroll(self, owned, **fields):
        found = old(self, owned, **fields)
        found.moves = [[move] for move in found.moves[0]]
        return found

    patch.setattr(UnrolledSequence, "unroll", unroll)


@fault(asker="encoder")
def a_network_outside_gets_nothing_of_the_second_player(patch):
    def first_part(old, self, step, cotangent, first):
        kept = dict(self.sensitivity._sums)
        found = old(self, step, cotangent, first)
        if any(part.evaluation.name.startswith("updates[1]") for part in step.parts):
            self.sensitivity._sums = kept
        return found

    instead(patch, "pullback", first_part)


def verified(order, asker):
    game = warm_game(("adam", "sgd"))
    for p in game.D.parameters():
        p.register_hook(lambda g: 0.5 * g)
    updates = [(game.D, game.opt_D, game.d_loss), (game.G, game.opt_G, game.g_loss)]
    unrolled = UnrolledSequence(updates, game.losses()[asker], getattr(game, asker), order=order, steps=2)
    # The first call's own proof would find some of them before.
    unrolled.prove = False
    before = snapshot(game)
    report = verify(unrolled, *game.batch)
    assert not changed(before, snapshot(game))
    return report


@pytest.mark.parametrize("name", FAULTS)
def test_verify_fails_on_a_fault_of_a_sequence(name, monkeypatch):
    """And passes without it."""
    plant, *given = FAULTS[name]
    assert verified(*given).passed
    plant(monkeypatch)
    assert not verified(*given).passed
