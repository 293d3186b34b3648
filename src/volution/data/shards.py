"""Datasets in shards of the layout of WebDataset, in folders or on web servers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from volution.data.images import ImageData
from volution.data.remote import is_remote
from volution.data.shard_counting import count_shards
from volution.data.shard_index import INDEX, ShardIndex, beside, read_index, refuse_unfinished
from volution.data.shard_places import divide, find_shards
from volution.data.shard_reading import Facts, Shard
from volution.data.stream import Stream

__all__ = ["load_shards", "open_shards"]


def load_shards(spec: str, *, max_pixels: int = 100_000_000) -> ImageData:
    """Return the dataset in shards.

    Args:
        spec: A folder with an ``index.json`` (as :func:`volution.data.write_shards` makes it) or
            with ``train*.tar`` and ``val*.tar``; or a pattern of the training shards, a comma, and
            a pattern of the validation shards; or a pattern of validation shards alone, to measure
            with. Patterns may have braces and wildcards, may be URLs, and lie in the folder of the
            one before if they name none. Without an index, classes are called by their numbers.
        max_pixels: Larger images are refused.

    Raises:
        FileNotFoundError: If there are no such shards.
        ValueError: If ``spec`` cannot be understood, or shards are damaged.
        OSError: If a server cannot be reached.
    """
    train, val = find_shards(spec)
    indices = _Indices()
    described = [_describe(places, indices) for places in (train, val)]
    facts = [facts for _, more in described for facts in more]
    unlabelled = next((fact.unlabelled for fact in facts if fact.unlabelled), None)
    if unlabelled:
        raise ValueError(unlabelled)
    highest = max((label for fact in facts for label in fact.labels), default=-1)
    index = indices.common() or ShardIndex(tuple(str(i) for i in range(highest + 1)), 3, {})
    classes = len(index.classes)
    if highest >= classes:
        raise ValueError(f"data wds:{spec}: label {highest} is not from 0 to {classes - 1}")
    if classes < 2:
        raise ValueError(f"data wds:{spec} has only one class, it takes at least two to learn")
    streams = [
        Stream(tuple(shards), classes, index.channels, max_pixels) for shards, _ in described
    ]
    return ImageData(
        name=f"wds:{spec}",
        classes=index.classes,
        channels=index.channels,
        train=streams[0],
        val=streams[1],
        image_size=index.image_size,
        mean=index.mean,
        std=index.std,
        augmentation=index.augmentation,
    )


def open_shards(spec: str, *, channels: int = 3, max_pixels: int = 100_000_000) -> Stream:
    """Return the images in shards, with or without labels, as they come.

    Args:
        spec: As for :func:`load_shards`; all that it names is taken, in that order.
        channels: 3 reads RGB, 1 grey.
        max_pixels: Larger images are refused.

    Raises:
        FileNotFoundError: If there are no such shards.
        ValueError: If ``spec`` cannot be understood, or shards are damaged.
        OSError: If a server cannot be reached.
    """
    train, val = find_shards(spec)
    shards, _ = _describe([*train, *val], _Indices())
    return Stream(tuple(shards), None, channels, max_pixels)


class _Indices:
    """The indices of the folders that shards lie in, each read once."""

    def __init__(self) -> None:
        self._found: dict[str, ShardIndex | None] = {}

    def of(self, folder: str) -> ShardIndex | None:
        if folder not in self._found:
            self._found[folder] = read_index(folder)
            if self._found[folder] is None:
                refuse_unfinished(folder)
        return self._found[folder]

    def common(self) -> ShardIndex | None:
        """Return one of them; they must agree on classes and channels."""
        found = {folder: index for folder, index in self._found.items() if index is not None}
        meanings = {(index.classes, index.channels) for index in found.values()}
        if len(meanings) > 1:
            raise ValueError(f"{' and '.join(found)} hold shards of other classes or channels")
        return next(iter(found.values()), None)


def _describe(places: Sequence[str], indices: _Indices) -> tuple[list[Shard], list[Facts]]:
    """Return shards with their numbers of samples, and what was found out about uncounted ones."""
    known = {place: _indexed(place, indices) for place in places}
    uncounted = [place for place, shard in known.items() if shard is None]
    facts = count_shards(uncounted)
    counted = {p: Shard(p, fact.labels) for p, fact in zip(uncounted, facts, strict=True)}
    return [known[place] or counted[place] for place in places], facts


def _indexed(place: str, indices: _Indices) -> Shard | None:
    """Return a shard as an index describes it; None for a local one that is in none."""
    folder, name = divide(place)
    index = indices.of(folder)
    entry = None if index is None else index.shards.get(name)
    if entry is None:
        if is_remote(place):
            what = "is missing" if index is None else f"does not name {name}"
            where = beside(folder, INDEX)
            raise ValueError(f"shard {place}: {where} {what}; shards on a server need it")
        return None
    shard = Shard(place, entry.labels, entry.bytes)
    if not is_remote(place):
        if not Path(place).is_file():
            raise FileNotFoundError(f"no shard at {place}, which {INDEX} names")
        shard.check_size(Path(place).stat().st_size)
    return shard
