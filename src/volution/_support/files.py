"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["beside", "write_whole"]


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Give a file to write to, which takes the place of ``path`` if nothing goes wrong."""
    # Processes on several machines may have the same number.
    unfinished = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.unfinished")
    try:
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text file of one writer, so that it is there completely or as it was before.

    What a kill leaves unfinished has a name of its own, which the next write takes again.

    Args:
        path: The file; its folder must exist.
        text: What it is to hold, in UTF-8.

    Raises:
        OSError: If it cannot be written; the file is then as it was.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_whole(Path(folder) / "note.txt", "kept")
        ...     [path.name for path in Path(folder).iterdir()]
        ['note.txt']
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
