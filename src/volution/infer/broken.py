"""A list of any length that takes little memory: what was wrong with unreadable images."""

from __future__ import annotations

import json
import tempfile
import weakref
from collections.abc import Collection, Iterator

__all__ = ["BrokenList"]

_IN_MEMORY = 1 << 20


class BrokenList(Collection[str]):
    """Messages, kept in memory up to a megabyte and in a temporary file beyond.

    Example:
        >>> broken = BrokenList()
        >>> broken.add("a.png is not a readable image")
        >>> len(broken), list(broken)
        (1, ['a.png is not a readable image'])
    """

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._count = 0

    def add(self, message: str) -> None:
        """Append a message."""
        self._file.seek(0, 2)
        # JSON, because a path may hold a line break.
        self._file.write(json.dumps(message).encode() + b"\n")
        self._count += 1

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        place = 0
        while True:
            # Two iterations may take turns.
            self._file.seek(place)
            line = self._file.readline()
            if not line:
                return
            place = self._file.tell()
            yield json.loads(line)

    def __contains__(self, message: object) -> bool:
        return any(message == mine for mine in self)
