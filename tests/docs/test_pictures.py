"""Pictures of the repository: each is on some page, shown or by a link, and has a palette."""

import os
import re

from pages import ROOT
from PIL import Image

PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "RESULTS.md", ROOT / "examples" / "README.md"]
PAGES += [*ROOT.glob("docs/*.md"), *ROOT.glob("results/**/README.md")]
PICTURES = [path for place in ("docs/pictures", "results") for path in (ROOT / place).rglob("*.png")]


def shown(text, page):
    """The pictures that a page shows or links to, by their place."""
    links = re.findall(r"(?:\]\(|src=\")([^)#\s\"]+\.(?:png|gif))", text)
    return {os.path.normpath(page.parent / link) for link in links if "://" not in link}


def test_every_picture_is_on_a_page():
    """And one that none has is noticed."""
    found = set().union(*(shown(page.read_text(encoding="utf-8"), page) for page in PAGES))
    assert len(PICTURES) > 20
    assert sorted(str(path) for path in PICTURES if str(path) not in found) == []
    assert str(ROOT / "results" / "none.png") not in found


def test_every_picture_has_a_palette():
    """A third of the size of one without."""
    for path in PICTURES:
        with Image.open(path) as picture:
            assert picture.mode == "P", path
