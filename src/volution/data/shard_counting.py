"""How many samples shards hold that no index describes; counted once, remembered."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from volution._support.console import Meter
from volution._support.files import beside
from volution.data.shard_reading import Facts, scan_shard

__all__ = ["count_shards"]

_WORTH_A_BAR = 64 * 2**20
"""Bytes from which on counting may take a while."""


def count_shards(places: Sequence[str]) -> list[Facts]:
    """Look through local shards; unchanged ones are looked through once and for all.

    What was found is kept in the user's cache folder (``$VOLUTION_CACHE`` or
    ``~/.cache/volution``), by path, size and time of change; nothing is written beside the shards.

    Args:
        places: Paths.

    Raises:
        FileNotFoundError: If a shard is missing.
        ValueError: If one is damaged or holds no sample.
    """
    sizes = [_size(place) for place in places]
    found = [_remembered(place) for place in places]
    new = sum(size for size, facts in zip(sizes, found, strict=True) if facts is None)
    with Meter("counting shards", sum(f is None for f in found), show=new > _WORTH_A_BAR) as meter:
        start, samples = time.perf_counter(), 0
        for i, place in enumerate(places):
            if found[i] is None:
                facts = found[i] = scan_shard(place)
                _remember(place, facts)
                samples += len(facts.labels)
                meter.add(1, rate=samples / (time.perf_counter() - start))
    return [facts for facts in found if facts is not None]


def _size(place: str) -> int:
    path = Path(place)
    if not path.is_file():
        raise FileNotFoundError(f"no shard at {path}")
    return path.stat().st_size


def _state(place: str) -> list[int]:
    status = Path(place).stat()
    return [status.st_size, status.st_mtime_ns]


def _note(place: str) -> Path:
    folder = os.environ.get("VOLUTION_CACHE") or Path.home() / ".cache" / "volution"
    digest = hashlib.sha256(str(Path(place).resolve()).encode(errors="surrogateescape"))
    return Path(folder) / "shards" / f"{digest.hexdigest()[:32]}.json"


def _remembered(place: str) -> Facts | None:
    try:
        note = json.loads(_note(place).read_text())
        return Facts(*note["facts"]) if note["state"] == _state(place) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # counting again is always right


def _remember(place: str, facts: Facts) -> None:
    note = _note(place)
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        with beside(note) as unfinished:
            unfinished.write_text(json.dumps({"state": _state(place), "facts": facts}))
    except OSError:
        return  # a home that cannot be written to costs time, nothing else
