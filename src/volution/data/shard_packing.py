"""Samples into tar files, one complete file after the other."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from volution._support.console import Meter
from volution._support.extras import needs
from volution.data.images import ImageFiles, Images
from volution.data.shard_index import IndexedShard
from volution.data.shard_journal import Journal
from volution.data.shard_keys import decoded
from volution.data.shard_reading import LABEL, scan_shard

__all__ = ["pack"]

Sample = dict[str, str | bytes]

_BLOCK = 512  # bytes; a tar file is made of such
_ENDING = 20 * _BLOCK  # what a tar file is filled up to a multiple of


def pack(
    journal: Journal,
    split: str,
    images: Images,
    order: np.ndarray,
    keys: Sequence[str],
    limits: tuple[int, int],
    workers: int,
    meter: Meter,
) -> None:
    """Write the images of a split that the journal does not have yet.

    Args:
        journal: What was done; it is kept up to date.
        split: Name of the split.
        images: Its images.
        order: Positions of all of them, in the order of writing.
        keys: What each image is called.
        limits: Most bytes, and most images, of a shard.
        workers: Processes that read.
        meter: Counts images.

    Raises:
        ValueError: If no image of the split can be read.
        OSError: If a shard cannot be written.
    """
    start = journal.next.get(split, 0)
    shard: _Shard | None = None
    try:
        position = start
        for found in _encoded(images, order[start:], workers):
            if found.problem:
                journal.broken.append(_told(found, images, keys))
            else:
                label = images.labels[found.position]
                sample: Sample = {"__key__": keys[found.position], found.kind: found.content}
                sample[LABEL] = str(label).encode()
                if shard is not None and not shard.takes(sample, limits):
                    journal.add(split, shard.finish(), position)
                    shard = None
                if shard is None:
                    number = len(journal.shards.get(split, ()))
                    shard = _Shard(journal.folder / f"{split}-{number:06d}.tar")
                shard.add(sample, label)
            position += 1
            meter.add(1)
        if shard is not None:
            journal.add(split, shard.finish(), position)
            shard = None
    except OSError as error:
        done = sum(len(shards) for shards in journal.shards.values())
        reason = error.strerror or error
        raise OSError(
            f"destination: {journal.folder}: {reason}; {done} shards are complete, the same "
            f"command goes on from there"
        ) from error
    finally:
        if shard is not None:
            shard.abandon()
    if len(images) and not journal.shards.get(split):
        raise ValueError(
            f"none of the {len(images)} images of {split} can be read; {journal.broken[-1]}"
        )


def _told(found: _Encoded, images: Images, keys: Sequence[str]) -> str:
    """Return what is wrong with an image, without the folder it was in: shards go elsewhere."""
    if not isinstance(images, ImageFiles):
        return found.problem
    path = images.paths[found.position]
    return found.problem.replace(str(path), decoded(keys[found.position]) + path.suffix)


class _Shard:
    """A tar file that is being written, under another name until it is complete."""

    def __init__(self, path: Path) -> None:
        with needs("data"):
            from webdataset import TarWriter
        self.path = path
        self.unfinished = path.with_name(f".{path.name}.unfinished")
        self.file = _Hashed(self.unfinished)
        # Nobody and no time: the same samples make the same bytes.
        self.tar = TarWriter(
            self.file, user="", group="", mtime=0, format="PAX_FORMAT", encoder=False
        )
        self.labels = list[int]()
        self.size = 0

    def takes(self, sample: Sample, limits: tuple[int, int]) -> bool:
        """Return whether a sample goes in without exceeding most bytes and most samples."""
        size = self.size + _size(sample) + 2 * _BLOCK
        whole = -(-size // _ENDING) * _ENDING
        return whole <= limits[0] and len(self.labels) < limits[1]

    def add(self, sample: Sample, label: int) -> None:
        self.tar.write(sample)
        self.labels.append(label)
        self.size += _size(sample)

    def finish(self) -> IndexedShard:
        """Complete the file, read it back, and give it its name."""
        self.tar.close()
        self.file.close()
        digest = self.file.digest.hexdigest()
        same = _digest(self.unfinished) == digest
        if not same or scan_shard(str(self.unfinished)).labels != self.labels:
            raise OSError(f"{self.path.name} reads otherwise than it was written; check the disk")
        size = self.unfinished.stat().st_size
        os.replace(self.unfinished, self.path)
        return IndexedShard(self.path.name, tuple(self.labels), size, digest)

    def abandon(self) -> None:
        """Leave nothing behind."""
        self.file.abandon()
        self.unfinished.unlink(missing_ok=True)


class _Hashed:
    """A file that knows the digest of what was written to it."""

    def __init__(self, path: Path) -> None:
        self.digest = hashlib.sha256()
        self._file = path.open("wb")
        self._abandoned = False

    def write(self, content: bytes) -> int:
        if self._abandoned:  # by a tar file that is closed after it failed
            return len(content)
        self.digest.update(content)
        return self._file.write(content)

    def close(self) -> None:
        """Write all of it to the disk, and forget it, so that reading back is reading."""
        self._file.flush()
        os.fsync(self._file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        self._file.close()

    def abandon(self) -> None:
        self._abandoned = True
        with suppress(OSError):  # what could not be written before cannot be written now
            self._file.close()


def _size(sample: Sample) -> int:
    parts = [value for name, value in sample.items() if name != "__key__"]
    return sum(_BLOCK * (1 + -(-len(part) // _BLOCK)) for part in parts)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


class _Encoded(NamedTuple):
    """An image as it goes into a shard, or why it does not."""

    position: int
    kind: str
    content: bytes
    problem: str


class _Files(Dataset[_Encoded]):
    """Images as files: their own bytes, or PNG."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __getitem__(self, position: int) -> _Encoded:
        try:
            # Also where only its bytes are needed: what cannot be decoded is of no use.
            image = self.images.open(position)
            if isinstance(self.images, ImageFiles):
                path = self.images.paths[position]
                return _Encoded(position, path.suffix[1:].lower(), path.read_bytes(), "")
        except (ValueError, OSError) as error:
            return _Encoded(position, "", b"", str(error))
        file = io.BytesIO()
        image.save(file, "png")
        return _Encoded(position, "png", file.getvalue(), "")


def _encoded(images: Images, positions: np.ndarray, workers: int) -> Iterator[_Encoded]:
    loader = DataLoader(
        _Files(images),
        batch_size=None,
        sampler=positions.tolist(),
        num_workers=workers,
        generator=torch.Generator(),
    )
    yield from loader
