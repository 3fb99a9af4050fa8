"""The examples in docstrings run, with torch and unroll_wrap imported, and give what they say."""

import doctest
import importlib
import pkgutil

import pytest
import torch

import unroll_wrap
from unroll_wrap.optimizers import read

NAMES = [module.name for module in pkgutil.walk_packages(unroll_wrap.__path__, "unroll_wrap.")]
MODULES = [name for name in NAMES if not name.endswith("__main__")]
# Tensors are compared as they are printed; blanks and long results may be written in another way.
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def examples(thing, name):
    """The doctests of a module, or of any object with a docstring, that hold examples."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = finder.find(thing, name, globs={"torch": torch, "unroll_wrap": unroll_wrap})
    return [test for test in found if test.examples]


def failures(test):
    torch.manual_seed(0)
    said = []
    # Without `verbose`, doctest goes by whether the command has -v, which is meant for pytest.
    doctest.DocTestRunner(optionflags=OPTIONS, verbose=False).run(test, out=said.append)
    return "".join(said)


TESTS = [test for name in MODULES for test in examples(importlib.import_module(name), name)]


@pytest.mark.parametrize("test", TESTS, ids=lambda test: test.name)
def test_every_example_runs(test, monkeypatch):
    monkeypatch.setattr(read, "RULES", dict(read.RULES))
    assert failures(test) == ""


def test_a_wrong_value_is_noticed():
    """The control."""

    def wrong():
        """Two are not three.

        >>> torch.ones(2).sum()
        tensor(3.)
        """

    (test,) = examples(wrong, "wrong")
    assert "Expected:\n    tensor(3.)\nGot:\n    tensor(2.)" in failures(test)


def test_the_public_names_have_examples():
    """Those that are used in a way of their own."""
    shown = {test.name.rsplit(".", 1)[1] for test in TESTS}
    backwards = {"FiniteDifference", "Recompute", "Truncate"}
    assert shown >= backwards | {"Objective", "UnrolledGeneratorLoss", "UpdateRule", "detach", "register_rule"}
