"""The questions, and the settings that answer each: what differs from the preset, by the label of its row."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from common.experiment import Preset
from ring_studies.training import Config

PRESETS = {
    # Appendix A: 25,000 generator updates.
    "paper": Preset(Config(), (), (0, 1, 2)),
    # What makes one setting, all seeds, a matter of a minute: a hundred times the rates, falling to zero, smaller
    # batches, a shorter z, which alone halves the updates that all modes take, and modes 2.5 times as wide. After 400
    # of these updates there is a thin circle, which has 19 % of its samples within 3 std of a mode and counts as all
    # modes covered; after 1,200 it has parted.
    "cpu": Preset(
        Config(updates=2000, noise=16, std=0.05, batch=128, g_lr=1e-2, d_lr=1e-2, decay=True, evaluate_every=50),
        (),
        (0, 1, 2),
    ),
    # Shows that every setting runs.
    "smoke": Preset(
        Config(updates=2, noise=4, batch=4, g_hidden=(8,), d_hidden=(8,), evaluate_every=1, columns=2), (), (0, 1)
    ),
}


class Study(NamedTuple):
    """A question, and its rows by label."""

    question: str
    rows: Mapping[str, Mapping[str, Any]]


def by_gradient(steps: tuple[int, ...], **game: Any) -> dict[str, dict[str, Any]]:
    """Every K with both terms of Eq. 12, with the first alone, and with the first at the mean over the steps."""
    rows = {"K = 0": {"unroll": 0, **game}}
    for gradient, words in (
        ("total", "both terms"),
        ("first", "first term"),
        ("first, averaged", "first term, averaged"),
    ):
        # At K = 1 the mean over the steps is the value at their end.
        chosen = [unroll for unroll in steps if unroll > 1 or gradient != "first, averaged"]
        rows |= {f"{words}, K = {unroll}": {"unroll": unroll, "gradient": gradient, **game} for unroll in chosen}
    return rows


STUDIES = {
    "second-gradient": Study(
        "Appendix B.2, Figure App.3: does the second term of Eq. 12 matter where D is updated as often as G?",
        by_gradient((1, 3, 5, 10)),
    ),
    "out-of-equilibrium": Study(
        "Appendix B.2, Figure App.4: the same with five generator updates for each of D. Do half the steps suffice?",
        by_gradient((1, 3, 5, 10, 20), g_updates=5),
    ),
    "steps": Study("How many steps?", {f"K = {unroll}": {"unroll": unroll} for unroll in (0, 1, 2, 3, 5, 10, 20)}),
    "inside": Study(
        "Which optimizer takes the inner steps, and on which minibatch?",
        {
            "D's Adam with its state": {"unroll": 5},
            "fresh Adam": {"unroll": 5, "inner": "fresh"},
            "SGD, rate 0.1": {"unroll": 5, "inner": "sgd", "sgd_lr": 0.1},
            "SGD, rate 1": {"unroll": 5, "inner": "sgd", "sgd_lr": 1.0},
            "D's Adam, new minibatches": {"unroll": 5, "resample": True},
        },
    ),
    "shortcuts": Study(
        "What can be saved at K = 10?",
        {
            "exact": {"unroll": 10},
            "last 3 steps differentiated": {"unroll": 10, "backward": "truncate 3"},
            "last step differentiated": {"unroll": 10, "backward": "truncate 1"},
            "none differentiated": {"unroll": 10, "gradient": "first"},
            "finite differences": {"unroll": 10, "backward": "finite difference"},
            "exact, every 2nd update": {"unroll": 10, "every": 2},
            "exact, every 5th update": {"unroll": 10, "every": 5},
        },
    ),
    "averaging": Study(
        "Appendix B.1, Figure App.1: would an ensemble of the last discriminators do instead (K = 0)?",
        {f"the last {size}": {"unroll": 0, "ensemble": size * (size > 1)} for size in (1, 5, 20, 50)},
    ),
    "delays": Study(
        "Appendix B.1, Figure App.2: five discriminators, kept every n-th update of D (K = 0)?",
        {f"every {period}": {"unroll": 0, "ensemble": 5, "period": period} for period in (1, 10, 50, 100)},
    ),
    "square": Study(
        "25 Gaussians on a square grid in the place of the ring",
        {f"K = {unroll}": {"unroll": unroll, "square": True} for unroll in (0, 5, 10)},
    ),
}
