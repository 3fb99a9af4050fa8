"""What the front page of a package index needs: the README with absolute links, and a badge that opens the notebook.

Both need the repository's address, which is set in one place, under ``[tool.hatch.metadata.hooks.custom]`` in
``pyproject.toml``. Without one the README goes into the package as it is. The notebook's own badge comes from the same
address, by ``docs/tools/notebook_badge.py``.
"""

import re
from pathlib import Path

try:
    from hatchling.metadata.plugin.interface import MetadataHookInterface
except ImportError:  # Only a build has hatchling.
    MetadataHookInterface = object

# Not those within the page, nor those that are absolute.
LINK = re.compile(r"(!?)(\[[^\]]*\]\()(?!\w+:|#)([^)\s]+)\)")
NOTEBOOK = "examples/quickstart.ipynb"


def for_index(text, address, branch="main"):
    """The README with links to ``address``, that of a repository on GitHub, and with the badge under its title."""
    if not address:
        return text
    address = address.rstrip("/")

    def absolute(match):
        picture, label, place = match.groups()
        return f"{picture}{label}{address}/{'raw' if picture else 'blob'}/{branch}/{place})"

    title, rest = LINK.sub(absolute, text).split("\n", 1)
    return f"{title}\n\n{badge(address, branch)}\n{rest}"


def badge(address, branch="main"):
    """The picture that opens the notebook in Colab."""
    colab = address.rstrip("/").replace("https://github.com/", "https://colab.research.google.com/github/")
    picture = "![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)"
    return f"[{picture}]({colab}/blob/{branch}/{NOTEBOOK})"


class ReadmeHook(MetadataHookInterface):
    """Sets the package's readme, and its links if there is an address."""

    PLUGIN_NAME = "custom"

    def update(self, metadata):
        address = self.config.get("address", "")
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": for_index(text, address)}
        if address:
            metadata["urls"] = {"Repository": address}
