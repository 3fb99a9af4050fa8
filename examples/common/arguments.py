"""Command-line values that say what was given, what is allowed and what to do."""

import argparse
from collections.abc import Callable

import torch


def whole_number(at_least: int, hint: str) -> Callable[[str], int]:
    """An argparse type: a whole number no smaller than `at_least`.

    Args:
        at_least: Smallest value allowed.
        hint: What to do instead, a sentence.

    Returns:
        The function that argparse calls with the text.
    """

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or number < at_least:
            raise argparse.ArgumentTypeError(f"got {text!r}, allowed: a whole number from {at_least} up. {hint}")
        return number

    return parse


def device(text: str) -> torch.device:
    """An argparse type: a device that this torch can use on this machine.

    Args:
        text: For example `cpu`, `cuda`, `cuda:1` or `mps`.

    Returns:
        The device.

    Raises:
        argparse.ArgumentTypeError: The name is unknown or the device is not there.
    """
    found = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        found.append("mps")
    remedy = f"Found here: {', '.join(found)}. Give one of them, or leave --device out for the CPU."
    try:
        chosen = torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"got {text!r}, which torch does not know. {remedy}") from None
    named = f"{chosen.type}:{chosen.index or 0}" if chosen.type == "cuda" else chosen.type
    if named not in found:
        raise argparse.ArgumentTypeError(f"got {text!r}, which is not available. {remedy}")
    return chosen
