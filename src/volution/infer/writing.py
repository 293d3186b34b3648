"""Predictions on their way into a file, as they come; the file appears when it is complete."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np

from volution._support.files import beside
from volution.infer.broken import BrokenList
from volution.infer.streaming import Prediction

__all__ = [
    "SUFFIXES",
    "CsvWriter",
    "JsonLinesWriter",
    "JsonWriter",
    "Writer",
    "check_output",
    "open_writer",
]

SUFFIXES = (".csv", ".json", ".jsonl", ".parquet")
"""Endings of files that predictions can be written to."""


class Writer(Protocol):
    """Takes predictions batch by batch."""

    def write(self, rows: Sequence[Prediction]) -> None:
        """Write the next predictions."""
        ...

    def finish(self) -> None:
        """Write what comes after the last one."""
        ...


class CsvWriter:
    """One line for each image that could be read: its path, then classes and probabilities.

    Args:
        text: Where to write.
        top: How many classes a line has.
    """

    def __init__(self, text: TextIO, top: int) -> None:
        self._writer = csv.writer(text, lineterminator="\n")
        names = [f"{name}{i}" for i in range(1, 1 + top) for name in ("class", "probability")]
        self._writer.writerow(["path", *names])

    def write(self, rows: Sequence[Prediction]) -> None:
        for row in rows:
            if not row.error:
                pairs = zip(row.classes, row.probabilities, strict=True)
                self._writer.writerow([row.path, *(v for n, p in pairs for v in (n, round(p, 6)))])

    def finish(self) -> None:
        pass


class JsonWriter:
    """One object: ``predictions``, and ``broken`` with what was wrong with the other images.

    Args:
        text: Where to write; nothing is written before the first prediction has come.
    """

    def __init__(self, text: TextIO) -> None:
        self._text = text
        self._broken = BrokenList()
        self._before = '{"predictions": ['

    def write(self, rows: Sequence[Prediction]) -> None:
        for row in rows:
            if row.error:
                self._broken.add(row.error)
            else:
                self._text.write(self._before + _as_json(row))
                self._before = ",\n"

    def finish(self) -> None:
        self._text.write(self._before if self._before != ",\n" else "")
        self._text.write('],\n"broken": [')
        for i, problem in enumerate(self._broken):
            self._text.write((",\n" if i else "") + _dumps(problem))
        self._text.write("]}\n")


class JsonLinesWriter:
    """One object a line for every image, in order; ``error`` says why one could not be read.

    Args:
        text: Where to write.
    """

    def __init__(self, text: TextIO) -> None:
        self._text = text

    def write(self, rows: Sequence[Prediction]) -> None:
        for row in rows:
            self._text.write(_as_json(row) + "\n")

    def finish(self) -> None:
        pass


def check_output(path: Path, *, embeddings: bool) -> None:
    """Raise for a file that cannot be written, before any work.

    Raises:
        ValueError: If its ending is unknown, or embeddings do not fit into its format.
        FileNotFoundError: If its folder does not exist.
        MissingExtra: If it is a parquet file and pyarrow is not installed.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"output must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}, or be a folder, "
            f"without such an ending, for parts; got {path}"
        )
    if embeddings and path.suffix == ".csv":
        raise ValueError(f"output: embeddings go to .parquet, .jsonl or .json, got {path}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"output: no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"output: folder {path.parent} cannot be written to")
    if path.suffix == ".parquet":
        from volution.infer.parquet import require_pyarrow

        require_pyarrow()


@contextmanager
def open_writer(path: Path, *, top: int, width: int | None = None) -> Iterator[Writer]:
    """Write predictions to a file in the format of its ending; it appears when all is written.

    Args:
        path: The file; one that is there is replaced.
        top: How many classes a prediction has.
        width: How many numbers an embedding has; None if there are none.
    """
    check_output(path, embeddings=width is not None)
    with beside(path) as unfinished:
        if path.suffix == ".parquet":
            from volution.infer.parquet import ParquetWriter

            with ParquetWriter(unfinished, width=width) as writer:
                yield writer
            return
        makers: dict[str, Callable[[TextIO], Writer]] = {
            ".csv": lambda text: CsvWriter(text, top),
            ".json": JsonWriter,
            ".jsonl": JsonLinesWriter,
        }
        # Names of files that are no UTF-8 are written as they are.
        as_is = "surrogateescape"
        with unfinished.open("w", encoding="utf-8", errors=as_is, newline="\n") as text:
            plain = makers[path.suffix](text)
            yield plain
            plain.finish()


def _as_json(row: Prediction) -> str:
    if row.error:
        return _dumps({"path": row.path, "error": row.error})
    value: dict[str, Any] = {
        "path": row.path,
        "classes": [
            {"name": name, "probability": round(probability, 6)}
            for name, probability in zip(row.classes, row.probabilities, strict=True)
        ],
    }
    if row.embedding is not None:
        # Nine digits are what a float32 needs to come back as it was.
        value["embedding"] = [float(f"{x:.9g}") for x in np.asarray(row.embedding).tolist()]
    return _dumps(value)


def _dumps(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a file's name may be no UTF-8; escaped, it stays JSON
        return json.dumps(value)
    return text
