"""Numbers of a run in CSV files: written whole or line by line, read even if torn off."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from volution._support.files import write_whole

__all__ = ["line", "parse_rows", "read_rows", "write_rows"]


def line(values: Sequence[object]) -> str:
    """Return a line of a CSV file of numbers and plain names.

    Example:
        >>> line([3, 0.25])
        '3,0.25\\n'
    """
    return ",".join(str(value) for value in values) + "\n"


def write_rows(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write rows that have the same names to a CSV file, whole or not at all."""
    text = line(list(rows[0])) + "".join(line(list(row.values())) for row in rows)
    write_whole(path, text)


def read_rows(path: Path) -> list[dict[str, float]]:
    """Read rows of numbers, without a last one that was not written to its end.

    Args:
        path: The file.

    Returns:
        One dictionary for each row, with the names of the first line; empty if there is no file.

    Raises:
        ValueError: If the file is something else.
    """
    if not path.is_file():
        return []
    try:
        return parse_rows(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not a table of numbers: {error}") from error


def parse_rows(text: str) -> list[dict[str, float]]:
    """Return the rows in a file's text, as :func:`read_rows`.

    Raises:
        ValueError: If it is something else.

    Example:
        >>> parse_rows("step,loss\\n1,0.5\\n2,0.2")
        [{'step': 1.0, 'loss': 0.5}]
    """
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    rows = list(csv.reader(lines))
    if not rows:
        return []
    head, rest = rows[0], rows[1:]
    return [{name: float(value) for name, value in zip(head, row, strict=True)} for row in rest]
