"""The package's own rules: private names of torch's in one file, and files that fit a few screens."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "unroll_wrap"
FILES = sorted(PACKAGE.rglob("*.py"))
PRIVATE = PACKAGE / "torch_private.py"


def private_names(path):
    """What a file uses of torch's that begins with an underscore: attributes of modules, and imports."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            # Torch documents its operators on lists of tensors, whatever their names begin with.
            if re.fullmatch(r"torch(\.\w+)*\._(?!foreach_)\w+", name):
                found.append(name)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [n for n in names if any(part.startswith("_") for part in n.split("."))]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("torch")]
            found += [n for n in names if any(part.startswith("_") for part in n.split("."))]
    return [name for name in found if "__" not in name]


@pytest.mark.parametrize("path", [f for f in FILES if f != PRIVATE], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_private_names_of_torch_are_in_one_file(path):
    """Which says why, and what would replace them."""
    assert private_names(path) == []


def test_private_names_are_found():
    """The control: that file has them, imported and as attributes."""
    found = private_names(PRIVATE)
    assert "torch._C" in found
    assert "torch.overrides._get_current_function_mode_stack" in found
    assert "torch.utils._pytree" in found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_fits_a_few_screens(path):
    """At most 250 lines; one that grows beyond has two jobs."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 250
