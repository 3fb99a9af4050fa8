"""The Makefile and the versions that it installs: every target is declared, every dependency has a version."""

import re
import runpy
import sys

import pytest
from pages import ROOT

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
CONSTRAINTS = runpy.run_path(str(ROOT / "tools" / "constraints.py"))
FILES = sorted((ROOT / "constraints").glob("*.txt"))


def test_every_target_is_declared():
    """But for those that are files; and what is declared is there."""
    targets = {name for name in re.findall(r"^([a-z][a-z-]*):(?!=)", MAKEFILE, re.MULTILINE)}
    (declared,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert sorted(declared.split()) == sorted(targets)
    assert {"test", "test-shuffled", "constraints"} <= targets


def test_every_target_is_explained():
    """By `make help`, unless another target is made of it."""
    (declared,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    inner = {"help", "test-on", "style", "imports", "types"}
    assert [name for name in declared.split() if name not in inner and f"make {name}" not in MAKEFILE] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_versions(path):
    """In the order of the alphabet, each package once, and whatever the tests need among them."""
    head, *lines = path.read_text(encoding="utf-8").splitlines()
    assert head.startswith("# Written by `make constraints`, for Python " + path.stem)
    found = CONSTRAINTS["versions"](lines)
    assert lines == [f"{name}=={version}" for name, version in sorted(found.items())]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.findall(r"^(?:dev|examples) = \[(.*?)^\]|^examples = \[(.*?)\]", project, re.MULTILINE | re.DOTALL)
    names = re.findall(r'"([\w-]+)', " ".join("".join(parts) for parts in listed))
    assert len(names) > 15 and {"pytest", "torchvision"} <= set(names)
    assert [name for name in names if name not in found] == []


def test_a_file_for_every_python():
    """A Python that has none gets that of the one before it."""
    of_python = CONSTRAINTS["of_python"]
    assert [path.stem for path in FILES] == ["3.10", "3.11", "3.12", "3.13"]
    assert of_python().stem == ".".join(map(str, sys.version_info[:2])) or sys.version_info[:2] > (3, 13)
    assert of_python((3, 10, 13)).stem == "3.10" and of_python((3, 99)).stem == "3.13"


def test_what_is_installed_stays():
    """Whatever its name is written like; and the rest is the file's."""
    found = CONSTRAINTS["beside"](["torch==2.6.0\n", "Jinja_2==0\n", "jinja2==1.0\n", "-e git+somewhere\n"])
    assert found["torch"] == "2.6.0" and found["jinja2"] == "1.0" and found["jinja-2"] == "0"
    assert found["pytest"] == CONSTRAINTS["versions"](CONSTRAINTS["of_python"]().read_text().splitlines())["pytest"]


def test_extras():
    """All of pyproject.toml's, by name."""
    assert {"bench", "dev", "docs", "examples", "hosts", "release"} == set(CONSTRAINTS["extras"]())
