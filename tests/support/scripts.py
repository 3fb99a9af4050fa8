"""The examples' scripts: from the command line, or within the tests' own process, where no import is paid twice."""

import importlib
import io
import pickle
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest import mock

EXAMPLES = Path(__file__).parents[2] / "examples"


class Done(NamedTuple):
    """What a command leaves, as `subprocess.run` says it."""

    returncode: int
    stdout: str
    stderr: str


def command(script, *options):
    return [sys.executable, str(EXAMPLES / f"{script}.py"), *map(str, options)]


def run(script, *options, **keywords):
    """A command of its own, whose runs have processes of their own."""
    given = {"cwd": EXAMPLES.parent, "capture_output": True, "text": True, "timeout": 300, **keywords}
    return subprocess.run(command(script, *options), **given)


def run_here(script, *options):
    """The same `main`, whose runs take place here, one after the other."""
    if str(EXAMPLES) not in sys.path:
        sys.path.append(str(EXAMPLES))
    main = importlib.import_module(script).main
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch("common.experiment.run_grid", one_by_one),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            code = main(list(map(str, options)))
        except SystemExit as end:
            code = end.code
    return Done(code, out.getvalue(), err.getvalue())


def one_by_one(function, jobs, *, workers, threads):
    """`run_grid` without processes: what goes to one and comes back from it is pickled as there."""
    for index, job in enumerate(jobs):
        messages = []
        one, arguments = pickle.loads(pickle.dumps((function, job)))
        one(*arguments, lambda message, sent=messages: sent.append(pickle.dumps(message)))
        yield from ((index, pickle.loads(message)) for message in messages)
