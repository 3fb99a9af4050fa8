"""What goes to loggers: scalars that every one of them takes, and nothing on the terminal."""

import ast
import logging
import math
import re
from pathlib import Path

from checks import unrolled_of, warm_world
from torch_optimizer import AdaBelief

import unroll_wrap
from unroll_wrap import diagnose


def test_scalars_are_flat_and_finite():
    """Plain floats under names that TensorBoard, W&B, MLflow and Lightning accept; the prefix is the user's."""
    world = warm_world()
    found = diagnose(unrolled_of(world, steps=3), *world.batch())
    scalars = found.scalars()
    assert len(scalars) == 14
    for name, value in scalars.items():
        assert type(value) is float and math.isfinite(value), name
        assert re.fullmatch(r"unroll/[a-z0-9_]+", name)
    assert scalars["unroll/share"] == found.share and scalars["unroll/steps"] == 3.0
    assert scalars["unroll/d_loss_first"] == found.d_losses[0] and scalars["unroll/d_loss_last"] == found.d_losses[-1]
    assert list(found.scalars("gan/")) == [name.replace("unroll/", "gan/") for name in scalars]


def test_tensorboard_takes_them(tmp_path):
    """And gives them back."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    world = warm_world()
    scalars = diagnose(unrolled_of(world, steps=2), *world.batch()).scalars()
    with SummaryWriter(tmp_path) as writer:
        for name, value in scalars.items():
            writer.add_scalar(name, value, 7)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert sorted(events.Tags()["scalars"]) == sorted(scalars)
    (event,) = events.Scalars("unroll/share")
    assert event.step == 7 and abs(event.value - scalars["unroll/share"]) < 1e-6


def test_a_call_prints_nothing_and_logs_by_name(capsys, caplog):
    """A traced optimizer is worth one line at INFO level, in the logger of the package."""
    world = warm_world()
    world.optimizer = AdaBelief(world.discriminator.parameters(), lr=0.01)
    capsys.readouterr()  # what that class prints itself
    with caplog.at_level(logging.INFO, logger="unroll_wrap"):
        unrolled = unrolled_of(world, steps=2)
        unrolled(*world.batch())
        unrolled(*world.batch())
    assert capsys.readouterr() == ("", "")
    assert [record.name for record in caplog.records] == ["unroll_wrap"]
    assert logging.getLogger("unroll_wrap").handlers == []


def test_only_a_report_that_is_asked_for_is_printed():
    """`verify` and the doctor, whose work is to print."""
    package = Path(unroll_wrap.__file__).parent
    printing = {
        path.name
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
    }
    assert printing == {"command.py", "demo.py"}
