"""Every link of the built site leads somewhere, and no page fetches anything from another host.

python docs/check_links.py site
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a browser fetches by itself when it opens a page.
FETCHED = {("img", "src"), ("script", "src"), ("iframe", "src"), ("source", "src"), ("video", "src")}
SHEETS = {"stylesheet", "icon", "preload", "modulepreload"}


class Page(HTMLParser):
    """The links of a page, the places in it that links may name, and what it fetches."""

    def __init__(self, text):
        super().__init__()
        self.links, self.places, self.fetched = [], {""}, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.places.update(given[name] for name in ("id", "name") if given.get(name))
        for name in ("href", "src"):
            if target := given.get(name):
                fetched = (tag, name) in FETCHED or (tag == "link" and SHEETS & set(given.get("rel", "").split()))
                (self.fetched if fetched else self.links).append(target)


def broken(site):
    """A line for each link that leads nowhere, and for each thing that would come from another host."""
    site = Path(site).resolve()
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        if path.name == "404.html":  # its links are absolute, for a server
            continue
        for target in (*page.links, *page.fetched):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                if target in page.fetched and parts.scheme != "data":
                    found.append(f"{path.relative_to(site)} fetches {target}")
                continue
            place = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            place = place / "index.html" if place.is_dir() else place
            if not place.is_relative_to(site) or not place.exists():
                found.append(f"{path.relative_to(site)} links to {target}, which is not there")
            elif place in pages and unquote(parts.fragment) not in pages[place].places:
                found.append(f"{path.relative_to(site)} links to {target}, and that page has no such heading")
    return found


if __name__ == "__main__":
    wrong = broken(sys.argv[1])
    print("\n".join(wrong) or "Every link leads somewhere.")
    sys.exit(bool(wrong))
