"""Files that are either the old version or the new one, never half of it."""

import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def replacing(path: Path) -> Generator[BinaryIO, None, None]:
    """Opens a temporary neighbour of `path` for writing and renames it over `path` once it is safely on disk.

    Args:
        path: The file to write; its folder is made if there is none.

    Yields:
        The open temporary file. On any error, a full disk included, it is removed and `path` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            # Without this the rename can reach the disk before the contents do.
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes text as UTF-8, atomically."""
    with replacing(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Writes a value as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=1) + "\n")
