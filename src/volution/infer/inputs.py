"""What is predicted on, as a sequence that is walked and never held."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from volution.infer.listing import walk_paths

__all__ = ["FileInputs", "Inputs", "Item", "Survey", "find_inputs"]


class Item(NamedTuple):
    """One image, not read yet, or read but not decoded."""

    name: str  # what to call it: its path, or its key in a shard
    content: bytes | None  # the file's bytes; None: the file at ``name``


@dataclass(frozen=True)
class Survey:
    """How many images there are, and a digest of their names in their order."""

    count: int
    digest: str


class Inputs(Protocol):
    """Images in an order that stays the same."""

    def survey(self) -> Survey:
        """Go through the names once."""
        ...

    def items(self, start: int = 0, stop: int | None = None) -> Iterator[Item]:
        """Yield those at the positions from ``start`` up to, not including, ``stop``."""
        ...


@dataclass(frozen=True)
class FileInputs:
    """Images that lie in files.

    Args:
        names: Files, folders and patterns, see :func:`volution.infer.find_paths`.
    """

    names: Sequence[str]

    def survey(self) -> Survey:
        """Go through the names once."""
        return _survey(walk_paths(self.names))

    def items(self, start: int = 0, stop: int | None = None) -> Iterator[Item]:
        """Yield those at the positions from ``start`` up to, not including, ``stop``."""
        for path in itertools.islice(walk_paths(self.names), start, stop):
            yield Item(path, None)


def find_inputs(names: Sequence[str]) -> Inputs:
    """Return the images that names stand for.

    Args:
        names: Files, folders and patterns.

    Raises:
        ValueError: If there is no name.
    """
    if not names:
        raise ValueError("no image is named; give files, folders or patterns")
    return FileInputs(tuple(names))


def _survey(names: Iterator[str]) -> Survey:
    digest, count = hashlib.sha256(), 0
    for name in names:
        # No path can hold a zero byte, so no two lists look alike.
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
        count += 1
    return Survey(count, digest.hexdigest())
