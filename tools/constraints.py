"""The versions that `make` installs, known to pass together: a file for each Python in constraints/, by this script.

    python tools/constraints.py path                   # the file of this Python
    python tools/constraints.py write [--upgrade]      # resolve pyproject.toml with all of its extras, for this Python
    python tools/constraints.py beside < FREEZE        # what is installed already, and the file for all the rest

Constraints are not a list of what is needed: that is pyproject.toml. Versions stay as they are unless they no longer
fit or --upgrade is given; after that, `make test` has to pass. The CUDA and triton packages are left out, which torch
itself pins and only Linux has.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "constraints"
# What pip says of a pin that does not go with the rest.
CONFLICT = re.compile(r"The user requested \(constraint\) ([\w.-]+)==")
PACKAGE = "unroll-wrap"
LEFT_OUT = re.compile(r"nvidia-|cuda-|triton$")
HEAD = "# Written by `make constraints`, for Python {}. See tools/constraints.py.\n"


def canonical(name):
    """A package's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def versions(lines):
    """Version by canonical name, of lines such as `torch==2.14.1`."""
    pairs = (line.split("==") for line in lines if re.match(r"[\w.-]+==", line))
    return {canonical(name): version.strip() for name, version in pairs}


def of_python(version=sys.version_info):
    """The file of a Python; that of the newest older one where it has none of its own."""
    files = {tuple(map(int, path.stem.split("."))): path for path in FOLDER.glob("*.txt")}
    older = [numbers for numbers in files if numbers <= tuple(version[:2])]
    return files[max(older)] if older else files[min(files)]


def text(found):
    """A line for each package, in the order of the alphabet."""
    return "".join(f"{name}=={version}\n" for name, version in sorted(found.items()))


def extras():
    """The names of all extras. Python 3.10 cannot read TOML by itself."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = project.split("[project.optional-dependencies]\n")[1].split("\n[")[0]
    return re.findall(r"^(\w+) = \[", section, re.MULTILINE)


def resolved(upgrade):
    """What pip would install for the package with all of its extras, into an environment that has nothing."""
    kept = {} if upgrade else versions(of_python().read_text(encoding="utf-8").splitlines())
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        report, constraints = Path(folder, "report.json"), Path(folder, "constraints.txt")
        pip = [f"{folder}/bin/python", "-m", "pip", "install", "--dry-run", "--report", str(report)]
        while True:
            constraints.write_text(text(kept), encoding="utf-8")
            done = subprocess.run(
                [*pip, "--constraint", str(constraints), f"{ROOT}[{','.join(extras())}]"],
                capture_output=True,
                text=True,
            )
            if done.returncode == 0:
                break
            conflicts = {canonical(name) for name in CONFLICT.findall(done.stdout + done.stderr)} & kept.keys()
            if not conflicts:
                sys.exit(done.stderr)
            print("No longer fit:", *(f"{name}=={kept.pop(name)}" for name in sorted(conflicts)), file=sys.stderr)
        installs = json.loads(report.read_text(encoding="utf-8"))["install"]
    found = {canonical(one["metadata"]["name"]): one["metadata"]["version"] for one in installs}
    # A build of its own for the CPU is the same version.
    found = {name: version.split("+")[0] for name, version in found.items()}
    return {name: version for name, version in found.items() if name != PACKAGE and not LEFT_OUT.match(name)}


def beside(freeze):
    """Pins for what an environment has, and those of the file for what it has not."""
    installed = versions(freeze)
    return versions(of_python().read_text(encoding="utf-8").splitlines()) | installed


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["path", "write", "beside"])
    parser.add_argument("--upgrade", action="store_true", help="of `write`: take the newest of everything")
    args = parser.parse_args(argv)
    if args.what == "path":
        print(of_python())
    elif args.what == "beside":
        print(text(beside(sys.stdin)), end="")
    else:
        python = ".".join(map(str, sys.version_info[:2]))
        found = HEAD.format(python) + text(resolved(args.upgrade))
        path = FOLDER / f"{python}.txt"
        path.write_text(found, encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {found.count('==')} packages")


if __name__ == "__main__":
    main()
