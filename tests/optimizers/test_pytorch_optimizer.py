"""Every class of pytorch_optimizer: exact by tracing its own step(), or refused by name with nothing moved."""

import pytest
import torch
from pytorch_optimizer_rows import NOTES, REFUSED, ROUNDS, SIGN, classes, factory
from situations import Situation, assert_exact, called
from torch import nn

import unroll_wrap

# The package calls torch in forms that torch would like to see no more.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("float64")]
TRACED = [name for name in classes() if name not in REFUSED]


def test_no_row_is_of_a_class_that_is_not_there():
    """Nor is any in two places."""
    assert len(classes()) == 133
    assert REFUSED.keys() | NOTES.keys() <= classes().keys()
    assert not REFUSED.keys() & NOTES.keys()


@pytest.mark.parametrize("name", [name for name in TRACED if NOTES.get(name) != ROUNDS])
def test_a_class_is_exact(name):
    """Value and slope, and nothing has moved; the first term alone is neither."""
    assert_exact(factory(name), second_term=NOTES.get(name) != SIGN)


@pytest.mark.parametrize("name", [name for name in TRACED if NOTES.get(name) == ROUNDS])
def test_a_class_that_rounds_has_the_value_of_its_steps(name):
    """A staircase has no slope for differences to find."""
    assert_value(factory(name))


def assert_value(make):
    """To 1e-12, and nothing has moved."""
    # One step: SpectralSphere's alone is half a minute to trace.
    situation = Situation(make, warm=4)
    before = situation.record()
    loss, found = called(situation, steps=1)
    assert situation.record() == before
    assert abs(loss.item() - situation.value(steps=1).item()) < 1e-12
    assert found == found and found != 0


def test_a_class_that_rounds_is_exact_where_it_does_not():
    """AdaFactor with its momentum in float64."""
    kind = classes()["AdaFactor"]
    assert_exact(lambda D: kind(D.parameters(), momentum_dtype=torch.float64))


@pytest.mark.parametrize("name", REFUSED)
def test_a_class_is_refused(name):
    """Before it has stepped, as most of them cannot without what an unroll has not."""
    try:
        situation = Situation(factory(name), warm=0)
    except ValueError as error:
        assert name == "DistributedMuon" and "process group" in str(error)
        return
    before = situation.record()
    with pytest.raises((TypeError, ValueError), match=name):
        called(situation)
    assert situation.record() == before


def test_scion_without_lists_has_the_value_of_its_steps():
    """As its row says; its iteration rounds to bfloat16."""
    assert_value(lambda D: classes()["SCION"](D.parameters(), foreach=False))


def test_fadam_in_float32():
    """The precision that it takes."""
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    D, G = nn.Linear(2, 1), nn.Linear(3, 2)
    unrolled = unroll_wrap.UnrolledGeneratorLoss(D, factory("FAdam")(D), *unroll_wrap.non_saturating, steps=2)
    loss = unrolled(torch.randn(8, 2), G(torch.randn(8, 3)))
    loss.backward()
    assert all(p.grad.isfinite().all() for p in G.parameters())
