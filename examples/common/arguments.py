"""Command-line values that say what was given, what is allowed and what to do."""

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from unroll_wrap import FiniteDifference, Recompute, Store, minimax, non_saturating

OBJECTIVES = {"minimax": minimax, "non_saturating": non_saturating}
BACKWARDS = {"store": Store(), "recompute": Recompute(), "finite_difference": FiniteDifference()}


def experiment_parser(
    script: str,
    presets: Iterable[str],
    default: str,
    *,
    description: str,
    epilog: str,
) -> tuple[argparse.ArgumentParser, argparse._ArgumentGroup]:
    """The options that every experiment has.

    Args:
        script: The name of the script without its ending.
        presets: Names to choose from.
        default: The preset when none is named.
        description: What the script does.
        epilog: The presets in words, and examples.

    Returns:
        The parser, and its group of what to train, for the script's own options.
    """
    parser = argparse.ArgumentParser(
        usage=f"python examples/{script}.py [--preset NAME] [--unroll K ...] [--seeds SEED ...] [...]",
        description=description,
        epilog=f"{epilog}\n\nFinished runs in --out are kept and only what is missing is trained.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what to train")
    what.add_argument("--preset", choices=presets, default=default, help=f"see below (default: {default})")
    what.add_argument(
        "--unroll",
        nargs="+",
        metavar="K",
        type=whole_number(0, "0 is plain GAN training."),
        help="unrolled steps of D, one or several (default: the preset's)",
    )
    add_length_options(what, "Every seed is a run for every K.", "run")
    what.add_argument("--objective", choices=OBJECTIVES, help="the players' losses (default: the preset's)")
    add_running_options(parser, f"out/{script}/PRESET")
    return parser, what


def add_length_options(what: argparse._ArgumentGroup, seeds: str, one: str) -> None:
    """How many seeds, and how many updates each: the options of every grid.

    Args:
        what: The parser's group of what to train.
        seeds: What several seeds mean, for whoever gives something else.
        one: What is trained, in a word.
    """
    what.add_argument(
        "--seed",
        "--seeds",
        dest="seeds",
        nargs="+",
        metavar="SEED",
        type=whole_number(0, seeds),
        help="seeds, one or several (default: the preset's)",
    )
    what.add_argument(
        "--steps",
        metavar="N",
        type=whole_number(1, "Leave --steps out for the preset's own number."),
        help=f"generator updates of every {one} (default: the preset's)",
    )


def add_running_options(parser: argparse.ArgumentParser, out: str) -> None:
    """Where runs are kept, and how they are run: the options of every grid.

    Args:
        parser: Gets a group of them.
        out: The default of --out, in words.
    """
    where = parser.add_argument_group("where and how")
    where.add_argument("--out", type=Path, metavar="DIR", help=f"folder of checkpoints and results (default: {out})")
    existing = where.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="go on with unfinished runs, bit for bit")
    existing.add_argument("--restart", action="store_true", help="throw away what --out holds of these runs")
    existing.add_argument("--report", action="store_true", help="train nothing: table and figures of what is there")
    where.add_argument(
        "--device", type=device, default="cpu", help="cpu (default, and enough for the small nets), cuda, cuda:1, ..."
    )
    where.add_argument(
        "--workers",
        metavar="N",
        type=whole_number(1, "Leave --workers out for one a core."),
        help="runs at a time, each in its own process (default: one a core)",
    )
    where.add_argument(
        "--threads",
        metavar="N",
        default=1,
        type=whole_number(1, "1 is the fastest for small nets."),
        help="threads per run (default: 1)",
    )
    where.add_argument(
        "--save-every",
        metavar="N",
        default=500,
        type=whole_number(1, "Leave --save-every out for 500."),
        help="generator updates between checkpoints (default: 500)",
    )


def add_image_options(what: argparse._ArgumentGroup, data: str) -> None:
    """The options that every experiment on images has.

    Args:
        what: The group of what to train.
        data: The name of the data set.
    """
    what.add_argument("--backward", choices=BACKWARDS, help="how the unroll is differentiated (default: store)")
    what.add_argument(
        "--apart",
        dest="one_batch",
        action="store_false",
        default=None,
        help="D normalises real and fake samples apart, not in one batch",
    )
    what.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        default=Path("data"),
        help=f"folder with {data} in torchvision's layout; downloaded if absent (default: data)",
    )


def parse(parser: argparse.ArgumentParser, script: str, argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with the default of --out filled in."""
    args = parser.parse_args(argv)
    args.out = args.out or Path("out", script, args.preset)
    return args


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
