"""CONTRIBUTING.md: the three recipes run as they stand there and are exact; every path that it names is there."""

import importlib
import re
import sys
import types
from functools import partial

import pytest
import torch
from checks import assert_exact, assert_exact_in, call, expect, expected_of, unrolled_of, warm_world
from pages import CONTRIBUTING, ROOT, blocks
from torch_table import world_of, wrapped

import unroll_wrap.objectives
import unroll_wrap.optimizers.read
from unroll_wrap import Recompute, Truncate

TEXT = CONTRIBUTING.read_text(encoding="utf-8")


def recipe(title):
    """The code of a section, with the line that it starts on."""
    start = TEXT.index(f"\n## {title}\n")
    lines = TEXT[:start].count("\n")
    ((line, code),) = blocks(TEXT[start : TEXT.index("\n## ", start + 1)])
    return lines + line, code


@pytest.fixture
def written(monkeypatch):
    """Runs a recipe as the file that it says to write, and returns what the file defines."""

    def run(title, name, change=("", "")):
        line, code = recipe(title)
        assert change[0] in code
        module = types.ModuleType(name)
        module.__package__ = name.rpartition(".")[0]
        monkeypatch.setitem(sys.modules, name, module)
        exec(compile("\n" * (line - 1) + code.replace(*change, 1), str(CONTRIBUTING), "exec"), vars(module))
        return module

    return run


def backward(written, *change):
    return written("Add a backward", "unroll_wrap.backward.yours", *change)


def test_the_optimizer(written, monkeypatch):
    """Its rule in the place of the package's own, from a warm optimizer."""
    rule = written("Add an optimizer", "unroll_wrap.optimizers.rules.mine").Adagrad
    rules = {**unroll_wrap.optimizers.read.RULES, "torch.optim.adagrad.Adagrad": rule}
    monkeypatch.setattr(unroll_wrap.optimizers.read, "RULES", rules)
    world = world_of(partial(torch.optim.Adagrad, lr=0.05))
    assert unroll_wrap.optimizers.read.rule_of(world.optimizer) is rule
    assert_exact(call(world, wrapped(world, steps=3)), world, expect(world, steps=3), gap=1e-3)


def test_the_objective(monkeypatch):
    """In the module that it goes into: the formula, and unrolled exactly."""
    names = dict(vars(unroll_wrap.objectives))
    line, code = recipe("Add an objective")
    exec(compile("\n" * (line - 1) + code, str(CONTRIBUTING), "exec"), names)
    (name,) = names.keys() - vars(unroll_wrap.objectives).keys() - {"_squared_hinge_d"}
    objective = names[name]
    real, fake = torch.randn(2, 7, dtype=torch.float64)
    expected = ((1 - real).clamp(min=0) ** 2).mean() + ((1 + fake).clamp(min=0) ** 2).mean()
    assert objective.d_loss(lambda x: x, real, fake).item() == pytest.approx(expected.item(), rel=1e-12)
    world = warm_world()
    world.d_loss, world.g_loss = objective
    assert_exact(call(world, unrolled_of(world, steps=3)), world, expect(world, steps=3))


@pytest.mark.parametrize("name", ["mlp", "dropout", "batchnorm_two_batches"])
def test_the_backward(written, name):
    """As exact as those of the package, however the call is written; and within a Truncate."""
    yours = backward(written).Yours()
    world = warm_world(name)
    assert_exact_in(world.modes, world, unrolled_of(world, steps=3, backward=yours), expected_of(name, "adam", 3))
    found = []
    for inner in (yours, Recompute()):
        world = warm_world(name)
        loss = call(world, unrolled_of(world, steps=4, backward=Truncate(2, inner)))
        found.append(torch.autograd.grad(loss, world.inputs))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("attribute", ["second_order", "rewinds"])
def test_a_backward_that_does_not_say_what_it_is(written, attribute):
    """Where the class is written, by the name of what is missing; a misspelt one is missing too."""
    with pytest.raises(TypeError, match=f"Yours is a Backward without {attribute}. Say in its class"):
        backward(written, (f"    {attribute} = ", "    twice = "))


@pytest.mark.parametrize("method", ["tape", "step", "pullback"])
def test_a_backward_without_a_method(written, method):
    """Where it is made, by the name of the method."""
    yours = backward(written, (f"def {method}(", f"def other_{method}(")).Yours
    world = warm_world()
    with pytest.raises(TypeError, match=f"abstract.*{method}"):
        call(world, unrolled_of(world, steps=2, backward=yours()))


def test_a_class_of_its_own_is_no_backward():
    """One that has a tape and inherits nothing."""

    class Alone:
        def tape(self, unroll, first, steps):
            raise AssertionError

    world = warm_world()
    with pytest.raises(TypeError, match="Pass an instance, such as Store"):
        unrolled_of(world, steps=2, backward=Alone())
    with pytest.raises(TypeError, match="Pass an instance, such as Recompute"):
        Truncate(2, Alone())


def is_there(name):
    """A path of the repository, of the package, or of its optimizers."""
    places = (ROOT, ROOT / "unroll_wrap", ROOT / "unroll_wrap" / "optimizers")
    return any((place / name).exists() for place in places)


def is_somewhere(name):
    """A file named without its folder, with a star perhaps, in a folder of the repository that holds code or pages."""
    return any(any(ROOT.glob(f"{folder}{name}")) for folder in ("", "unroll_wrap/", "unroll_wrap/*/", "tests/*/"))


def test_every_path_is_there():
    """But for the two files that recipes tell to write; and one that is not there is noticed."""
    paths = set(re.findall(r"`([\w./]*/[\w./]*)`", TEXT)) - {"unroll_wrap/backward/yours.py"}
    assert len(paths) > 25
    assert sorted(path for path in paths if not is_there(path)) == []
    assert not is_there("tests/support/no_such_file.py")
    files = set(re.findall(r"`([\w*]+\.(?:py|md|toml|cff))`", TEXT))
    assert len(files) > 8
    assert sorted(name for name in files if not is_somewhere(name)) == []
    assert not is_somewhere("no_such_file.py")


def test_the_names_that_recipes_speak_of():
    """Tables of tests, by name."""
    tables = {"test_backwards": ("EXACT", "ORDERS", "EVERY"), "test_fuzz": ("KINDS",), "test_public_api": ("API",)}
    for module, names in tables.items():
        assert all(f"`{name}`" in TEXT for name in names)
        (path,) = (ROOT / "tests").rglob(f"{module}.py")
        text = path.read_text(encoding="utf-8")
        assert all(re.search(rf"^{name} = ", text, re.MULTILINE) for name in names)
    assert importlib.import_module("optimizers").OPTIMIZERS
