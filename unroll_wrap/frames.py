"""Whose code is running: this package's, torch's, or the user's."""

import os
import sys

import torch

NOT_THE_USERS = tuple(os.path.dirname(os.path.abspath(f)) + os.sep for f in (torch.__file__, __file__))


def users_line() -> int:
    """The ``stacklevel`` of whoever called, past this package and the frames that torch puts around."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(NOT_THE_USERS):
        level, frame = level + 1, frame.f_back
    return level
