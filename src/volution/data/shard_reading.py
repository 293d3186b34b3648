"""The samples of one shard: a tar file in the layout of WebDataset, local or on a web server."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple, cast

from volution.data.images import SUFFIXES
from volution.data.remote import RemoteFile, is_remote
from volution.data.shard_keys import decoded

__all__ = ["LABEL", "Facts", "RawSample", "Shard", "read_shard", "scan_shard"]

LABEL = "cls"
"""The part of a sample that holds its class number, as text."""

# The folders, the key up to the first dot of the file name, and the kind of part after it.
_MEMBER = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")
# What other tools write beside the samples.
_META = re.compile(r"__[^/]*__(/|$)")
_BLOCK = 512

Parts = dict[str, bytes]


@dataclass(frozen=True)
class Shard:
    """A tar file of samples.

    Args:
        place: Its path or URL.
        labels: Class number of each sample, -1 for one without.
        bytes: Its size, if it is known.
    """

    place: str
    labels: Sequence[int] = field(repr=False)
    bytes: int | None = None

    @property
    def samples(self) -> int:
        """How many samples it holds."""
        return len(self.labels)

    def check_size(self, found: int | None) -> None:
        """Raise ``ValueError`` if it has another size than it should."""
        if None not in (found, self.bytes) and found != self.bytes:
            raise ValueError(
                f"shard {self.place} is cut off or another one: it has {found} bytes, its index "
                f"says {self.bytes}"
            )


class RawSample(NamedTuple):
    """An image as it lies in a shard, not decoded yet."""

    number: int  # in the shard, from 0
    name: str  # of the image: its key and suffix
    image: bytes
    label: int | None


class Facts(NamedTuple):
    """What a look through a shard shows."""

    labels: list[int]  # -1 for a sample without
    unlabelled: str  # where the first of those is, or nothing


def read_shard(
    shard: Shard, *, wanted: Collection[int] | None = None, labelled: bool = True
) -> Iterator[RawSample]:
    """Yield samples of a shard in their order.

    Args:
        shard: Which one.
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

    def wants(number: int, kind: str) -> bool:
        return (wanted is None or number in wanted) and (kind == LABEL or _is_image(kind))

    for number, key, parts in _samples(shard, wants):
        if wanted is None or number in wanted:
            image = _image(shard, number, key, parts)
            label = _label(shard, number, key, parts)
            if label is None and labelled:
                raise ValueError(f"{_where(shard, number, key)}: it has no label ({key}.{LABEL})")
            yield RawSample(number, f"{decoded(key)}.{image}", parts[image], label)
        if number == last:
            return


def scan_shard(place: str) -> Facts:
    """Look through a shard without reading its images.

    Args:
        place: Its path.

    Raises:
        FileNotFoundError: If there is no such shard.
        ValueError: If it is cut off, has no sample, or one without an image or with a label that
            is not a number.
        OSError: If it cannot be read.
    """
    shard = Shard(place, ())
    labels, unlabelled = list[int](), ""
    for number, key, parts in _samples(shard, lambda _, kind: kind == LABEL):
        _image(shard, number, key, parts)
        label = _label(shard, number, key, parts)
        if label is None:
            unlabelled = unlabelled or f"{_where(shard, number, key)}: it has no label"
        labels.append(-1 if label is None else label)
    if not labels:
        raise ValueError(f"shard {place} holds no sample")
    return Facts(labels, unlabelled)


def _samples(shard: Shard, wants: Callable[[int, str], bool]) -> Iterator[tuple[int, str, Parts]]:
    """Yield number, key and parts of each sample; parts that are not wanted are left empty."""
    number, key, parts = -1, "", Parts()
    try:
        with _opened(shard) as archive:
            for found, kind, member in _members(archive):
                if found != key:
                    if parts:
                        yield number, key, parts
                    number, key, parts = number + 1, found, {}
                file = archive.extractfile(member) if wants(number, kind) else None
                parts[kind] = b"" if file is None else file.read()
    except (tarfile.TarError, EOFError) as error:
        after = f"after sample {number} ({key})" if number >= 0 else "at its beginning"
        raise ValueError(f"shard {shard.place} is damaged or cut off {after}: {error}") from error
    if parts:
        yield number, key, parts


@contextmanager
def _opened(shard: Shard) -> Iterator[tarfile.TarFile]:
    """Open a shard for reading from front to back; at its end it is checked for being whole."""
    if is_remote(shard.place):
        with RemoteFile(shard.place) as remote:
            shard.check_size(remote.length)
            file = cast("IO[bytes]", remote)
            with tarfile.open(fileobj=file, mode="r|", bufsize=1 << 16) as archive:
                yield archive
        return
    path = Path(shard.place)
    if not path.is_file():
        raise FileNotFoundError(f"no shard at {path}")
    with path.open("rb") as file:
        shard.check_size(path.stat().st_size)
        with tarfile.open(fileobj=file, mode="r:") as archive:
            yield archive
            # Cut off between two members, an archive reads like a shorter one without an end.
            file.seek(archive.offset)
            if file.read(_BLOCK) != bytes(_BLOCK):
                raise tarfile.ReadError("the end of the archive is missing")


def _members(archive: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Yield key, kind and header of everything in an archive that is part of a sample."""
    for member in archive:
        named = _MEMBER.fullmatch(member.name)
        if member.isreg() and named and not _META.match(member.name):
            yield named[1], named[2].lower(), member
        # It would remember every header.
        archive.members = []  # type: ignore[attr-defined]


def _is_image(kind: str) -> bool:
    return f".{kind}" in SUFFIXES


def _where(shard: Shard, number: int, key: str) -> str:
    return f"shard {shard.place}, sample {number} ({key})"


def _image(shard: Shard, number: int, key: str, parts: Parts) -> str:
    """Return which part of a sample is the image."""
    kind = next(filter(_is_image, parts), None)
    if kind is None:
        only = ", ".join(sorted(parts))
        raise ValueError(f"{_where(shard, number, key)}: it has no image, only {only}")
    return kind


def _label(shard: Shard, number: int, key: str, parts: Parts) -> int | None:
    text = parts.get(LABEL)
    if text is None:
        return None
    try:
        label = int(text)
    except ValueError:
        label = -1
    if label < 0:
        shown = text[:20].decode(errors="replace")
        where = _where(shard, number, key)
        raise ValueError(f"{where}: its label must be a class number, got {shown!r}")
    return label
