"""Pages and pictures that live elsewhere in the repository, brought into the site with their links.

A file is written once, where a reader of the repository looks for it, and its links are those of the repository. Here
each link between two such files becomes one between their pages.
"""

import os
import re
from pathlib import Path

from mkdocs.structure.files import File, InclusionLevel

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "benchmarks/RESULTS.md": "benchmarks.md",
    "examples/README.md": "experiments.md",
    "results/mixture_of_gaussians/studies/README.md": "studies.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
# What these pages show or link to, taken as it is.
ASSETS = (
    "results/**/*.png",
    "results/**/table.md",
    "examples/*.ipynb",
    "examples/*.py",
    "research/*.py",
    "LICENSE",
    "CITATION.cff",
)
IMAGE = re.compile(r'<img [^>]*src="([^"]+)"[^>]*>')
LINK = re.compile(r"(\]\()(?!\w+:|#)([^)#\s]+)(#[^)\s]*)?(\))")


def on_files(files, config):
    """Every page and asset, from its own place."""
    for source, target in PAGES.items():
        files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
    for pattern in ASSETS:
        for path in sorted(ROOT.glob(pattern)):
            place = path.relative_to(ROOT).as_posix()
            asset = File.generated(config, place, abs_src_path=str(path), inclusion=InclusionLevel.NOT_IN_NAV)
            files.append(asset)
    return files


def on_page_markdown(markdown, page, config, files):
    """Links of the repository become links of the site."""
    source = next((s for s, t in PAGES.items() if t == page.file.src_uri), f"docs/{page.file.src_uri}")
    if page.file.src_uri == "changelog.md":
        # It has nearly every word of the package, and comes last in a search.
        page.meta["search"] = {"boost": 0.1}
    if page.file.inclusion is InclusionLevel.NOT_IN_NAV:
        return markdown
    return relinked(markdown, source)


def on_page_content(html, page, config, files):
    """Pictures open in full size, and of a page with a heading for each message the sidebar has the chapters alone."""
    if page.file.src_uri == "troubleshooting.md":
        for chapter in page.toc:
            for section in chapter.children:
                section.children.clear()
    return IMAGE.sub(r'<a href="\1">\g<0></a>', html)


def relinked(markdown, source):
    """The text of ``source`` with every link as the page has to have it."""
    here = os.path.dirname(target_of(source))

    def link(match):
        place = os.path.normpath(os.path.join(os.path.dirname(source), match[2]))
        target = os.path.relpath(target_of(place), here or ".")
        return f"{match[1]}{target}{match[3] or ''}{match[4]}"

    return LINK.sub(link, markdown)


def target_of(place):
    """Where in the site a file of the repository is."""
    if place in PAGES:
        return PAGES[place]
    return place.removeprefix("docs/")
