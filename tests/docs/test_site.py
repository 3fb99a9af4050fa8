"""What `make docs` ends with: links that lead nowhere are found, and so is what a page would fetch from elsewhere."""

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def load(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGE = """<html><head><link rel="stylesheet" href="a.css"><script src="a.js"></script></head>
<body><h1 id="here">T</h1><a href="#here">1</a> <a href="b/c.html#there">2</a> <a href="b">3</a> <img src="a.css">
<a href="https://elsewhere.org/x">4</a> <a href="mailto:x@y.z">5</a> %s</body></html>"""
WRONG = {
    '<a href="gone.html">x</a>': "index.html links to gone.html, which is not there",
    '<a href="#gone">x</a>': "index.html links to #gone, and that page has no such heading",
    '<a href="b/c.html#gone">x</a>': "index.html links to b/c.html#gone, and that page has no such heading",
    '<a href="../a.html">x</a>': "index.html links to ../a.html, which is not there",
    '<img src="gone.png">': "index.html links to gone.png, which is not there",
    '<script src="https://cdn.org/a.js"></script>': "index.html fetches https://cdn.org/a.js",
    '<link rel="stylesheet" href="//cdn.org/a.css">': "index.html fetches //cdn.org/a.css",
}


def site(folder, more=""):
    (folder / "b").mkdir()
    for name, text in {
        "index.html": PAGE % more,
        "a.css": "",
        "a.js": "",
        "b/c.html": '<h2 id="there">T</h2>',
        "b/index.html": "",
    }.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_a_site_that_is_whole(tmp_path):
    assert load("check_links").broken(site(tmp_path)) == []


@pytest.mark.parametrize("more", WRONG)
def test_a_site_that_is_not(more, tmp_path):
    assert load("check_links").broken(site(tmp_path, more)) == [WRONG[more]]


def test_search_needs_no_other_host():
    """The stand-in for workers is here under the name that mkdocs.yml gives, which keeps the plugin from its own."""
    text = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    assert "  polyfills:\n    - javascripts/iframe-worker.js\n" in text
    assert "MIT License" in (DOCS / "javascripts" / "iframe-worker.js").read_text(encoding="utf-8")
