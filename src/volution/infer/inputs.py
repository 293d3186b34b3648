"""What is predicted on, as a sequence that is walked and never held."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from volution.data.ahead import Ahead
from volution.data.shards import open_shards
from volution.data.stream import Stream
from volution.infer.listing import walk_paths

__all__ = ["FileInputs", "Inputs", "Item", "ShardInputs", "Survey", "find_inputs"]

_SHARDS = "wds:"
_AHEAD = 64  # images whose bytes may wait in memory


class Item(NamedTuple):
    """One image, not read yet, or read but not decoded."""

    name: str  # what to call it: its path, or its name in a shard
    shard: str = ""  # the shard it came out of
    content: bytes | None = None  # the file's bytes; None: they are at ``name``


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

    def is_single(self) -> bool:
        """Say whether there is one image and no more."""
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

    def is_single(self) -> bool:
        """Say whether there is one image and no more; not all are walked for that."""
        return len(list(itertools.islice(walk_paths(self.names), 2))) == 1

    def items(self, start: int = 0, stop: int | None = None) -> Iterator[Item]:
        """Yield those at the positions from ``start`` up to, not including, ``stop``."""
        for path in itertools.islice(walk_paths(self.names), start, stop):
            yield Item(path)


@dataclass(frozen=True)
class ShardInputs:
    """Images that lie in shards, with or without labels.

    Args:
        stream: The shards.
    """

    stream: Stream

    def survey(self) -> Survey:
        """Describe the shards; nothing is read for that."""
        shards = self.stream.shards
        names = (f"{Path(shard.place).name} {shard.samples} {shard.bytes}" for shard in shards)
        return Survey(len(self.stream), _survey(names).digest)

    def is_single(self) -> bool:
        """Say whether there is one image and no more."""
        return len(self.stream) == 1

    def items(self, start: int = 0, stop: int | None = None) -> Iterator[Item]:
        """Yield those at the positions from ``start`` up to, not including, ``stop``."""
        stop = len(self.stream) if stop is None else min(stop, len(self.stream))
        with closing(Ahead(self._read(start, stop), _AHEAD)) as items:
            yield from items

    def _read(self, start: int, stop: int) -> Generator[Item, None, None]:
        # Shard by shard: positions of all images at once would take memory.
        for first, end in pairwise(self.stream.starts):
            positions = np.arange(max(first, start), min(end, stop))
            for item in self.stream.read(positions) if len(positions) else ():
                yield Item(item.sample.name, item.shard, item.sample.image)


def find_inputs(names: Sequence[str]) -> Inputs:
    """Return the images that names stand for.

    Args:
        names: Files, folders and patterns; or ``wds:`` and shards, alone, of which both training
            and validation images are taken.

    Raises:
        FileNotFoundError: If there are no such shards.
        ValueError: If there is no name, or one of shards among others.
    """
    if not names:
        raise ValueError("no image is named; give files, folders, patterns or wds:SHARDS")
    shards = [name for name in names if name.startswith(_SHARDS)]
    if not shards:
        return FileInputs(tuple(names))
    if len(names) > 1:
        raise ValueError(f"images: {shards[0]} stands alone, got {len(names)} names")
    return ShardInputs(open_shards(shards[0].removeprefix(_SHARDS)))


def _survey(names: Iterator[str]) -> Survey:
    digest, count = hashlib.sha256(), 0
    for name in names:
        # No path can hold a zero byte, so no two lists look alike.
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
        count += 1
    return Survey(count, digest.hexdigest())
