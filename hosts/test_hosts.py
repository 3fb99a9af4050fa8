"""The recipes with the real packages: at most six lines change, the result is exact, K=0 is the loop as it was.

A script and its diff are held to what `tests/exact/test_loops.py` holds the loops in the shape of well-known code to.
Lightning and the plain script have theirs there, and are run here too.
"""

import runpy

import pytest
import recipes
import torch
from audit import CALL, Audit, changed_lines
from pages import blocks
from patches import before_and_after

from unroll_wrap import UnrolledGeneratorLoss


@pytest.fixture(autouse=True)
def as_a_script(monkeypatch, tmp_path):
    """In an empty folder, in float64, and with the settings of a process of its own afterwards."""
    monkeypatch.chdir(tmp_path)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def script(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scripts")

    def run(host, kind):
        for when, text in zip(("before", "after"), before_and_after(recipes.SCRIPTS[host]), strict=True):
            (folder / f"{host}_{when}.py").write_text(text, encoding="utf-8")
        return runpy.run_path(str(folder / f"{host}_{kind}.py"))

    return run


@pytest.mark.parametrize("host", recipes.SCRIPTS)
def test_at_most_six_lines_change(host):
    before, after = before_and_after(recipes.SCRIPTS[host])
    assert 3 <= changed_lines(before, after) <= 6
    assert changed_lines(before, after.replace("Unrolled", "further\nUnrolled")) > changed_lines(before, after)


@pytest.mark.parametrize("host", recipes.SCRIPTS)
def test_no_steps_are_the_host_as_it_was(host, script, monkeypatch):
    trained = {}
    for kind, steps in (("before", None), ("after", 0), ("after", 5)):
        monkeypatch.setattr(UnrolledGeneratorLoss, "__call__", lambda *args, k=steps, **o: CALL(*args, steps=k, **o))
        trained[steps] = script(host, kind)["result"].state_dict()
    plain, zero, five = trained[None], trained[0], trained[5]
    assert all(torch.equal(plain[key], zero[key]) for key in plain)
    assert not all(torch.allclose(plain[key], five[key], rtol=1e-6) for key in plain)


@pytest.mark.parametrize("host", recipes.SCRIPTS)
def test_exact_in_the_middle_of_training(host, script, monkeypatch):
    """Real steps and differences of them at the third call, a control that must fail, and `verify`."""
    audit = Audit(host)
    monkeypatch.setattr(UnrolledGeneratorLoss, "__call__", lambda *args, **options: audit(*args, **options))
    script(host, "after")
    assert audit.done


def test_the_recipes_in_the_docs_are_up_to_date():
    """Otherwise: python hosts/recipes.py --write."""
    text = recipes.DOCS.read_text(encoding="utf-8")
    for host in recipes.SCRIPTS:
        assert recipes.documented(text, host) == recipes.recipe(host)
    # The control.
    assert recipes.documented(text.replace("+from", "+import"), "ignite") != recipes.recipe("ignite")


@pytest.mark.filterwarnings("ignore")  # higher and TorchOpt use what torch has deprecated
def test_the_page_for_those_who_come_from_other_libraries():
    """The three agree where all are right, in the page's own code."""
    torch.set_default_dtype(torch.float32)
    page = recipes.DOCS.parent / "coming-from.md"
    names = {"__name__": "coming_from"}
    for line, code in blocks(page.read_text(encoding="utf-8")):
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), names)
    assert {"with_higher", "with_torchopt"} <= set(names)
