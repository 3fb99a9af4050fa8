"""Helpers for messages: describe what the user passed in one line, and find the user's line that a warning shows."""

import linecache
import os
import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

_OURS = os.path.abspath(os.path.dirname(__file__)) + os.sep
_NOT_THE_USERS = os.path.abspath(os.path.dirname(torch.__file__)) + os.sep, _OURS


def described(value: Any) -> str:
    """Describe a value in one line of text, because its ``repr`` often fills a page."""
    name = type(value).__name__
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, Tensor):
        return f"a {name} of shape {tuple(value.shape)}"
    if isinstance(value, (nn.Module, torch.optim.Optimizer)):
        return f"an instance of {name}"
    if isinstance(value, Mapping) and value:
        return f"a {name} of {len(value)}, the first {described(next(iter(value.values())))}"
    if isinstance(value, (list, tuple)) and value:
        return f"a {name} of {len(value)}, the first {described(value[0])}"
    return f"{value!r:.100}"


def users_line() -> int:
    """Return the ``stacklevel`` of the nearest caller outside of this package and of torch."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and not is_users(frame):
        level, frame = level + 1, frame.f_back
    return level


def is_users(frame: FrameType) -> bool:
    """Return whether a frame runs code from outside of this package and of torch."""
    return not frame.f_code.co_filename.startswith(_NOT_THE_USERS)


def is_ours(frame: FrameType) -> bool:
    """Return whether a frame runs code of this package."""
    return frame.f_code.co_filename.startswith(_OURS)


def line_of(frame: FrameType) -> str:
    """Return the line that a frame is at, as ``file:number: source``."""
    file, number = frame.f_code.co_filename, frame.f_lineno
    return f"{os.path.basename(file)}:{number}: {linecache.getline(file, number, frame.f_globals).strip()}"


def add_note(error: BaseException, note: str) -> None:
    """Let an error be shown with a line more, which Python can do from 3.11 on."""
    if sys.version_info >= (3, 11):
        error.add_note(note)
