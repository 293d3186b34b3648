"""From images to shards: written whole, read back, continued after an interruption."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from volution._support.console import Meter
from volution._support.files import write_whole
from volution.data.images import ImageData, Images
from volution.data.shard_index import INDEX, ShardIndex, read_index
from volution.data.shard_journal import Journal
from volution.data.shard_keys import sample_keys
from volution.data.shard_packing import pack
from volution.data.stream import Stream

__all__ = ["ShardReport", "write_shards"]


@dataclass(frozen=True)
class ShardReport:
    """What was written.

    Args:
        folder: Where the shards are.
        shards: How many there are.
        samples: How many images they hold.
        bytes: Their size together.
        broken: Images that were left out because they cannot be read.
    """

    folder: Path
    shards: int
    samples: int
    bytes: int
    broken: list[str]


def write_shards(
    data: ImageData,
    destination: str | os.PathLike[str],
    *,
    max_bytes: int = 256 * 2**20,
    max_count: int = 100_000,
    workers: int = 0,
    seed: int = 0,
    show_progress: bool = True,
) -> ShardReport:
    """Write a dataset as shards that WebDataset, and ``wds:DESTINATION``, can read.

    Training images are shuffled, validation images keep their order. Files are copied byte for
    byte, other images written as PNG. A shard appears under its name when it is complete and was
    read back. Interrupted, the same call goes on after the last complete shard, and ends with the
    same bytes.

    Args:
        data: What to write.
        destination: Folder for ``train-000000.tar`` and so on, ``val-000000.tar`` and so on, and
            ``index.json``.
        max_bytes: Size of a shard that is not exceeded, unless by a single image.
        max_count: Most images in a shard.
        workers: Processes that read images and check that they can be decoded.
        seed: Decides the order of the training images.
        show_progress: Show a progress bar.

    Returns:
        What was written, also if an earlier call has finished it.

    Raises:
        ValueError: If a setting cannot work, the data are shards already, or ``destination`` holds
            shards of other data or settings.
        OSError: If ``destination`` cannot be written; the shards until then are complete.
        MissingExtra: If webdataset is not installed.

    Example:
        >>> import tempfile
        >>> from volution import data
        >>> with tempfile.TemporaryDirectory() as dst:
        ...     report = write_shards(data.load("digits"), dst, show_progress=False)
        ...     again = data.load(f"wds:{dst}")
        >>> report.shards, report.samples, len(again.train), len(again.val)
        (2, 1797, 1438, 359)
    """
    for name, value in (("max_bytes", max_bytes), ("max_count", max_count)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if workers < 0:
        raise ValueError(f"workers must be at least 0, got {workers}")
    splits = {"train": data.train, "val": data.val}
    if any(isinstance(images, Stream) for images in splits.values()):
        raise ValueError(f"data {data.name} is in shards already; give what they were made from")
    keys = dict(zip(splits, sample_keys(list(splits.values())), strict=True))
    job = _job(data, splits, keys, [max_bytes, max_count, seed])
    folder = Path(destination).expanduser()
    journal = Journal.begin(folder, job)
    if journal is None:
        return _report(folder)
    total = sum(len(images) for images in splits.values())
    done = sum(journal.next.values())
    with Meter("writing shards", total, show=show_progress, done=done) as meter:
        for split, images in splits.items():
            order = np.arange(len(images))
            if split == "train":
                order = np.random.default_rng(seed).permutation(order)
            limits = max_bytes, max_count
            pack(journal, split, images, order, keys[split], limits, workers, meter)
    index = ShardIndex(
        classes=data.classes,
        channels=data.channels,
        splits={split: tuple(shards) for split, shards in journal.shards.items()},
        image_size=data.image_size,
        mean=data.mean,
        std=data.std,
        augmentation=data.augmentation,
        job=job,
        left_out=tuple(journal.broken),
    )
    write_whole(folder / INDEX, index.to_json())
    journal.remove()
    return _report(folder)


def _job(
    data: ImageData,
    splits: Mapping[str, Images],
    keys: Mapping[str, Sequence[str]],
    settings: Sequence[int],
) -> str:
    """Return a digest of all that decides what the shards hold, without opening an image."""
    more = (data.channels, data.image_size, data.mean, data.std, data.augmentation)
    digest = hashlib.sha256(repr((data.classes, more, list(settings))).encode())
    for split, images in splits.items():
        wrong = next((label for label in images.labels if not 0 <= label < len(data.classes)), None)
        if wrong is not None:
            raise ValueError(
                f"data {data.name}: label {wrong} in {split} is not from 0 to "
                f"{len(data.classes) - 1}"
            )
        for key, label in zip(keys[split], images.labels, strict=True):
            digest.update(f"{split}/{key}={label}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _report(folder: Path) -> ShardReport:
    index = read_index(str(folder))
    assert index is not None
    shards = index.shards.values()
    return ShardReport(
        folder,
        len(shards),
        sum(len(shard.labels) for shard in shards),
        sum(shard.bytes for shard in shards),
        list(index.left_out),
    )
