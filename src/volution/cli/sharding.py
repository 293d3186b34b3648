"""The command that writes shards: data shard."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from volution._support.console import out
from volution.cli._common import tell_broken

__all__ = ["shard"]


def shard(
    source: str,
    destination: Path,
    *,
    max_mb: int = 256,
    max_count: int = 100_000,
    workers: int = 0,
    seed: int = 0,
    max_pixels: int = 100_000_000,
    json: bool = False,
) -> int:
    """Write a dataset as WebDataset shards, for wds:DESTINATION.

    Interrupted, the same command goes on after the last complete shard.

    Args:
        source: Any name that --data takes, except shards.
        destination: Folder to write to.
        max_mb: Size of a shard, in MiB.
        max_count: Most images in a shard.
        workers: Processes that read images and check that they can be decoded.
        seed: Decides the order of the training images.
        max_pixels: Larger images are left out.
        json: Write JSON.
    """
    from volution import data
    from volution.report.tables import print_json

    for name, value in (("max_mb", max_mb), ("max_pixels", max_pixels)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    written = data.write_shards(
        data.load(source, max_pixels=max_pixels),
        destination,
        max_bytes=max_mb * 2**20,
        max_count=max_count,
        workers=workers,
        seed=seed,
    )
    if json:
        print_json({**asdict(written), "folder": str(written.folder)})
        return 1 if written.broken else 0
    out.print(
        f"{written.samples:,} images in {written.shards} shards, {written.bytes / 2**20:,.1f} MiB; "
        f"use them with --data wds:{written.folder}",
        soft_wrap=True,
        markup=False,
    )
    return tell_broken(written.broken)
