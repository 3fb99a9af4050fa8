"""What waits for the repository's address: the absolute links of an index's front page, and the notebook's badge."""

import importlib.util
import json
import re
from pathlib import Path

import notebook_badge
import pytest

ROOT = Path(__file__).parents[2]
ADDRESS = "https://github.com/someone/unroll_wrap"
COLAB = "https://colab.research.google.com/github/someone/unroll_wrap/blob/main/examples/quickstart.ipynb"


@pytest.fixture
def for_index():
    """The function, without hatchling, which only a build has."""
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
    assert f"]({COLAB})" in found and (ROOT / "examples" / "quickstart.ipynb").exists()


def test_without_an_address_it_stays_as_it_is(for_index):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert for_index(text, "") == text


def test_the_notebook_has_the_badge_as_soon_as_there_is_an_address():
    """Otherwise: python docs/tools/notebook_badge.py. An address that goes or changes takes its badge along."""
    text = notebook_badge.PATH.read_text(encoding="utf-8")
    assert notebook_badge.written(text, notebook_badge.address()) == text
    plain, found = notebook_badge.written(text, ""), notebook_badge.written(text, ADDRESS)
    cell = "".join(json.loads(found)["cells"][0]["source"])
    assert cell.startswith("# unroll_wrap in two minutes\n\n[![Open in Colab](") and f"]({COLAB})\n\nIn Colab" in cell
    assert f"`%pip install git+{ADDRESS}`" in cell and "colab" not in plain
    assert notebook_badge.written(found, "") == plain
    assert notebook_badge.written(notebook_badge.written(plain, f"{ADDRESS}_old/"), ADDRESS) == found
    assert json.loads(found)["cells"][1:] == json.loads(text)["cells"][1:]
