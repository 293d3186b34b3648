"""Reading every image once, to know those that cannot be read before they are needed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from volution._support.console import Meter, log
from volution.data.images import ImageArrays, ImageFiles, Images
from volution.data.loader import Batch, loader
from volution.data.stream import Stream

__all__ = ["check_images"]

_BATCH = 64
_SAVE_SECONDS = 60.0
# Changes with what counts as readable, so that all images are then read anew.
_RULES = 1


def check_images(
    images: Images | Stream, *, workers: int = 0, show_progress: bool = True
) -> list[str]:
    """Read every image completely, and say which cannot be read.

    Image files that are whole are remembered, by path, size and time of change, under
    ``$VOLUTION_CACHE`` or ``~/.cache/volution``; a second pass reads only new and changed ones,
    and those that were broken.

    Args:
        images: What to read.
        workers: Processes that read.
        show_progress: Show a progress bar.

    Returns:
        What is wrong with each image that cannot be read, in the order of the data.

    Example:
        >>> from volution import data
        >>> check_images(data.load("digits").val, show_progress=False)
        []
    """
    if isinstance(images, ImageArrays):
        return []
    with Meter("checking images", len(images), show=show_progress) as meter:
        if isinstance(images, ImageFiles):
            return _check_files(images, workers, meter)
        return [problem for batch in _read(images, workers, meter) for problem in batch.broken]


def _check_files(images: ImageFiles, workers: int, meter: Meter) -> list[str]:
    memory = _Memory.of(images.paths)
    new, marks = list[int](), list[int | None]()
    for i, path in enumerate(images.paths):
        mark = _mark(path, images.max_pixels)
        if mark is None or mark not in memory:
            new.append(i)
            marks.append(mark)
        else:
            meter.add(1)
    rest = ImageFiles(
        [images.paths[i] for i in new],
        [images.labels[i] for i in new],
        images.channels,
        images.max_pixels,
    )
    broken = list[str]()
    try:
        for batch in _read(rest, workers, meter):
            broken += batch.broken
            memory.add(mark for i in batch.indices.tolist() if (mark := marks[i]) is not None)
    finally:  # what was read before an interruption need not be read again
        memory.save()
    return broken


def _read(images: Images | Stream, workers: int, meter: Meter) -> Iterator[Batch]:
    for batch in loader(images, _seen, batch_size=_BATCH, workers=workers):
        meter.add(len(batch.labels) + len(batch.broken))
        yield batch


def _seen(image: Image.Image) -> Tensor:
    return torch.zeros(1, 1, 1)


def _mark(path: Path, max_pixels: int) -> int | None:
    """Return a number that another file, or the file after a change, does not have."""
    try:
        state = path.stat()
    except OSError:  # reading it says why
        return None
    place = os.path.abspath(path)
    text = f"{_RULES}\0{max_pixels}\0{place}\0{state.st_size}\0{state.st_mtime_ns}"
    return int.from_bytes(blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest())


class _Memory:
    """Marks of the files that were found whole, kept in a file of their own for each folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._saved = time.monotonic()
        self._changed = False
        try:
            self._marks = set(np.load(path, allow_pickle=False).tolist())
        except (OSError, ValueError, EOFError):  # none yet, or damaged: then all is read
            self._marks = set[int]()

    @classmethod
    def of(cls, paths: Sequence[Path]) -> _Memory:
        places = {os.path.abspath(path.parent) for path in paths}
        root = os.path.commonpath(places) if places else ""
        name = blake2b(root.encode(errors="surrogateescape"), digest_size=8).hexdigest()
        cache = Path(os.environ.get("VOLUTION_CACHE") or "~/.cache/volution").expanduser()
        return cls(cache / "checked" / f"{name}.npy")

    def __contains__(self, mark: int) -> bool:
        return mark in self._marks

    def add(self, marks: Iterable[int]) -> None:
        self._marks.update(marks)
        self._changed = True
        if time.monotonic() - self._saved > _SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        if not self._changed:
            return
        unfinished = self.path.with_name(f".{self.path.name}.{os.getpid()}.unfinished")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with unfinished.open("wb") as file:
                np.save(file, np.array(sorted(self._marks), dtype=np.uint64))
            os.replace(unfinished, self.path)
        except OSError as error:
            log.print(
                f"cannot remember which images are whole, in {self.path.parent}: "
                f"{error.strerror or error}; set VOLUTION_CACHE",
                soft_wrap=True,
            )
        self._saved, self._changed = time.monotonic(), False
