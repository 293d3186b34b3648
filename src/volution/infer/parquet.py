"""Predictions as parquet: columns ``path``, ``classes``, ``probabilities``, ``error``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from volution._support.extras import needs
from volution.infer.streaming import Prediction

__all__ = ["Metadata", "ParquetWriter", "read_errors", "read_metadata", "require_pyarrow"]

# Rows wait in memory until a group is full; those with an embedding are large.
_GROUP = 8192
_GROUP_OF_EMBEDDINGS = 1024


def require_pyarrow() -> None:
    """Raise ``MissingExtra`` if pyarrow is not installed."""
    with needs("infer"):
        import pyarrow.parquet  # noqa: F401


class ParquetWriter:
    """Writes predictions to a parquet file; a context manager.

    Every image has a row, also one that could not be read: ``classes``, ``probabilities`` and
    ``embedding`` are null then, and ``error`` says why; otherwise ``error`` is null.

    Args:
        path: The file.
        width: How many numbers an embedding has; None leaves the column out.
        metadata: Text to keep with it.

    Attributes:
        count: Rows so far.
        broken: How many of them are of images that could not be read.
    """

    def __init__(
        self, path: Path, *, width: int | None = None, metadata: dict[str, str] | None = None
    ) -> None:
        with needs("infer"):
            import pyarrow as pa
            import pyarrow.parquet as pq
        fields = [
            pa.field("path", pa.string(), nullable=False),
            pa.field("classes", pa.list_(pa.string())),
            pa.field("probabilities", pa.list_(pa.float32())),
            *([pa.field("embedding", pa.list_(pa.float32(), width))] if width is not None else []),
            pa.field("error", pa.string()),
        ]
        self._width = width
        self._group = _GROUP if width is None else _GROUP_OF_EMBEDDINGS
        self._schema = pa.schema(fields, metadata=metadata)
        self._waiting = list[Prediction]()
        self.count = self.broken = 0
        self._file = pq.ParquetWriter(
            path, self._schema, compression="zstd", write_page_checksum=True
        )

    def write(self, rows: Sequence[Prediction]) -> None:
        self._waiting += rows
        if len(self._waiting) >= self._group:
            self._write_group()

    def finish(self) -> None:
        """Write the rows that still wait."""
        if self._waiting:
            self._write_group()

    def _write_group(self) -> None:
        import pyarrow as pa

        rows, self._waiting = self._waiting, []
        columns: dict[str, Any] = {
            "path": [_text(row.path) for row in rows],
            "classes": [None if row.error else list(row.classes) for row in rows],
            "probabilities": [None if row.error else list(row.probabilities) for row in rows],
            "error": [_text(row.error) or None for row in rows],
        }
        if self._width is not None:
            columns["embedding"] = self._embeddings(rows)
        self._file.write_table(pa.table(columns, schema=self._schema))
        self.count += len(rows)
        self.broken += sum(bool(row.error) for row in rows)

    def _embeddings(self, rows: Sequence[Prediction]) -> Any:
        import pyarrow as pa

        nothing = np.zeros(self._width or 0, np.float32)
        vectors = np.stack([nothing if r.embedding is None else r.embedding for r in rows])
        missing = pa.array(np.array([row.embedding is None for row in rows]))
        return pa.FixedSizeListArray.from_arrays(
            pa.array(vectors.ravel()), self._width, mask=missing
        )

    def __enter__(self) -> ParquetWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.finish()
                self._file.add_key_value_metadata({"broken": str(self.broken)})
        finally:
            self._file.close()


class Metadata(NamedTuple):
    """What a parquet file says of itself."""

    rows: int
    text: dict[str, str]


def read_metadata(path: Path) -> Metadata | None:
    """Return a parquet file's number of rows and its text; None if it is damaged."""
    with needs("infer"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    try:
        found = pq.read_metadata(path)
    except (pa.ArrowInvalid, OSError):
        return None
    text = {k.decode(): v.decode(errors="replace") for k, v in (found.metadata or {}).items()}
    return Metadata(found.num_rows, text)


def read_errors(path: Path) -> list[str]:
    """Return what was wrong with the images of a file that could not be read."""
    with needs("infer"):
        import pyarrow.parquet as pq
    return [error for error in pq.read_table(path, columns=["error"])["error"].to_pylist() if error]


def _text(value: str) -> str:
    """Return a path that parquet can hold: names of files may be no UTF-8."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
