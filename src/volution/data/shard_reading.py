"""The samples of one shard: a tar file in the layout of WebDataset, local or on a web server."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple, cast

from volution.data.images import SUFFIXES
from volution.data.remote import RemoteFile, is_remote

__all__ = ["RawSample", "Shard", "open_shard", "read_shard"]

LABEL = "cls"
"""The part of a sample that holds its class number, as text."""

# The folders, the key up to the first dot of the file name, and the kind of part after it.
_MEMBER = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")
# What other tools write beside the samples.
_META = re.compile(r"__[^/]*__(/|$)")


@dataclass(frozen=True)
class Shard:
    """A tar file of samples.

    Args:
        place: Its path or URL.
        samples: How many it holds.
        bytes: Its size, if it is known.
    """

    place: str
    samples: int
    bytes: int | None = None


class RawSample(NamedTuple):
    """An image as it lies in a shard, not decoded yet."""

    number: int  # in the shard, from 0
    name: str  # of the image: its key and suffix
    image: bytes
    label: int | None


def read_shard(
    place: str, *, wanted: Collection[int] | None = None, labelled: bool = True
) -> Iterator[RawSample]:
    """Yield samples of a shard in their order.

    Args:
        place: The shard's path or URL.
        wanted: Numbers of the samples that are asked for; the bytes of others are passed over, and
            nothing is read after the last. None asks for all.
        labelled: Whether each sample must have a label.

    Raises:
        FileNotFoundError: If there is no such shard.
        ValueError: If it is damaged, or a sample has no image or no label; the message names shard
            and sample.
        OSError: If it cannot be read.
    """
    last = max(wanted, default=-1) if wanted is not None else None
    number, key, parts = -1, "", dict[str, bytes]()
    try:
        with open_shard(place) as archive:
            for found, kind, member in _members(archive):
                if found != key:
                    if parts:
                        yield _sample(place, number, key, parts, labelled)
                    if last is not None and number >= last:
                        return
                    number, key, parts = number + 1, found, {}
                if wanted is None or number in wanted:
                    parts[kind] = _content(archive, member, kind)
    except (tarfile.TarError, EOFError) as error:
        after = f"after sample {number} ({key})" if number >= 0 else "at its beginning"
        raise ValueError(f"shard {place} is damaged or cut off {after}: {error}") from error
    if parts:
        yield _sample(place, number, key, parts, labelled)


@contextmanager
def open_shard(place: str) -> Iterator[tarfile.TarFile]:
    """Open a shard for reading from front to back.

    Raises:
        FileNotFoundError: If there is no such shard.
        tarfile.TarError: If it is not a tar file.
        OSError: If it cannot be read.
    """
    if is_remote(place):
        with (
            RemoteFile(place) as remote,
            tarfile.open(fileobj=cast("IO[bytes]", remote), mode="r|", bufsize=1 << 16) as archive,
        ):
            yield archive
        return
    if not Path(place).is_file():
        raise FileNotFoundError(f"no shard at {place}")
    with tarfile.open(place, mode="r:") as archive:
        yield archive


def _members(archive: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Yield key, kind and header of everything in an archive that is part of a sample."""
    for member in archive:
        named = _MEMBER.fullmatch(member.name)
        if member.isreg() and named and not _META.match(member.name):
            yield named[1], named[2].lower(), member
        # It would remember every header.
        archive.members = []  # type: ignore[attr-defined]


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, kind: str) -> bytes:
    """Return a part's bytes where they matter, nothing otherwise."""
    if kind != LABEL and f".{kind}" not in SUFFIXES:
        return b""
    file = archive.extractfile(member)
    return file.read() if file is not None else b""


def _sample(
    place: str, number: int, key: str, parts: dict[str, bytes], labelled: bool
) -> RawSample:
    where = f"shard {place}, sample {number} ({key})"
    kind = next((kind for kind in parts if f".{kind}" in SUFFIXES), None)
    if kind is None:
        raise ValueError(f"{where}: it has no image, only {', '.join(sorted(parts))}")
    text = parts.get(LABEL)
    if text is None:
        if labelled:
            raise ValueError(f"{where}: it has no label ({key}.{LABEL})")
        return RawSample(number, f"{key}.{kind}", parts[kind], None)
    try:
        label = int(text)
    except ValueError:
        shown = text[:20].decode(errors="replace")
        raise ValueError(f"{where}: its label must be a class number, got {shown!r}") from None
    return RawSample(number, f"{key}.{kind}", parts[kind], label)
