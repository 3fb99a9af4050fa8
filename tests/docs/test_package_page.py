"""The README on a package index: absolute links once the repository has an address, and a badge for the notebook."""

import importlib.util
import re
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ADDRESS = "https://github.com/someone/unroll_wrap"


@pytest.fixture
def for_index(monkeypatch):
    """The function, without hatchling, which only a build has."""
    interface = types.ModuleType("hatchling.metadata.plugin.interface")
    interface.MetadataHookInterface = object
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.for_index


def test_every_link_is_absolute(for_index):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    relative = re.compile(r"\]\((?!https:|#)")
    assert len(relative.findall(text)) > 15
    found = for_index(text, ADDRESS)
    assert relative.findall(found) == []
    assert f"]({ADDRESS}/blob/main/docs/backwards.md)" in found
    assert f"]({ADDRESS}/raw/main/docs/pictures/ring.gif)" in found
    assert "](#install)" in found and "](https://arxiv.org/abs/1611.02163)" in found
    assert found.startswith("# unroll_wrap\n\n[![Open in Colab](")
    notebook = "https://colab.research.google.com/github/someone/unroll_wrap/blob/main/examples/quickstart.ipynb"
    assert f"]({notebook})" in found and (ROOT / "examples" / "quickstart.ipynb").exists()


def test_without_an_address_it_stays_as_it_is(for_index):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert for_index(text, "") == text
