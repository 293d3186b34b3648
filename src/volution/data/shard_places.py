"""From ``wds:...`` to the places of shards: folders, patterns, addresses."""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from volution._support.extras import needs
from volution.data.remote import is_remote
from volution.data.shard_index import INDEX, beside, read_index, refuse_unfinished

__all__ = ["divide", "find_shards"]

_TRAIN = ("train",)
_VAL = ("val", "validation", "test")
_COMMAS_OUTSIDE_BRACES = re.compile(r",(?![^{}]*\})")
_GRAMMAR = (
    "wds:FOLDER, or wds:TRAINING,VALIDATION such as "
    "wds:shards/train-{000000..000146}.tar,val-{000000..000006}.tar"
)


def find_shards(spec: str) -> tuple[list[str], list[str]]:
    """Return the places of the training and of the validation shards.

    Args:
        spec: What stands after ``wds:``; see :func:`volution.data.load`.

    Returns:
        Paths and URLs. A single pattern names validation shards, the first list is empty then.

    Raises:
        FileNotFoundError: If there are no such shards, or no index where one is needed.
        ValueError: If ``spec`` cannot be understood.
        OSError: If a server cannot be reached.
    """
    patterns = _COMMAS_OUTSIDE_BRACES.split(spec)
    if len(patterns) > 2 or not all(patterns):
        raise ValueError(f"data wds:{spec} is not understood; give {_GRAMMAR}")
    first, *others = patterns
    if not others:
        return _in_folder(first) if _is_folder(first) else ([], _expand(first))
    folder = first.rpartition("/")[0]
    second = others[0] if "/" in others[0] or not folder else f"{folder}/{others[0]}"
    train, val = _expand(first), _expand(second)
    twice = set(train) & set(val)
    if twice:
        raise ValueError(f"data wds:{spec}: {min(twice)} is for both training and validation")
    return train, val


def divide(place: str) -> tuple[str, str]:
    """Return folder and file name of a place.

    Example:
        >>> divide("https://example.org/shards/val-000000.tar")
        ('https://example.org/shards', 'val-000000.tar')
    """
    if is_remote(place):
        folder, _, name = place.rpartition("/")
        return folder, name
    return str(Path(place).parent), Path(place).name


def _is_folder(spec: str) -> bool:
    if is_remote(spec):
        return not spec.endswith(".tar") and not re.search(r"[{}]", spec)
    return Path(spec).expanduser().is_dir()


def _in_folder(folder: str) -> tuple[list[str], list[str]]:
    folder = folder if is_remote(folder) else str(Path(folder).expanduser())
    index = read_index(folder)
    if index is not None:
        named = {
            split: [beside(folder, shard.name) for shard in shards]
            for split, shards in index.splits.items()
        }
        if not _first(named, _VAL):
            raise ValueError(f"{beside(folder, INDEX)} names no shards of val")
        return _first(named, _TRAIN), _first(named, _VAL)
    if is_remote(folder):
        raise FileNotFoundError(f"no {INDEX} at {folder}; shards on a server need one")
    refuse_unfinished(folder)
    start = glob.escape(folder)
    found = {name: sorted(glob.glob(f"{start}/{name}*.tar")) for name in (*_TRAIN, *_VAL)}
    train, val = _first(found, _TRAIN), _first(found, _VAL)
    if not train or not val:
        raise FileNotFoundError(
            f"data folder {folder} has neither {INDEX} nor both train*.tar and val*.tar; name its "
            f"shards: {_GRAMMAR}"
        )
    return train, val


def _first(found: Mapping[str, list[str]], names: Sequence[str]) -> list[str]:
    return next((found[name] for name in names if found.get(name)), [])


def _expand(pattern: str) -> list[str]:
    """Return the places that a pattern with braces and wildcards stands for."""
    with needs("data"):
        from braceexpand import braceexpand
    scheme = re.match(r"([A-Za-z0-9+]{2,}):", pattern)
    if scheme and not is_remote(pattern):
        raise ValueError(
            f"shards at {pattern}: {scheme[1]} is not read; give files, or addresses of http(s)"
        )
    try:
        names = list(braceexpand(pattern))
    except ValueError as error:
        raise ValueError(f"shards at {pattern}: {error}") from error
    places = [place for name in names for place in _existing(name)]
    if len(set(places)) < len(places):
        raise ValueError(f"shards at {pattern}: one is named twice")
    return places


def _existing(name: str) -> list[str]:
    if is_remote(name):
        return [name]
    path = Path(name).expanduser()
    if path.is_file():
        return [str(path)]
    matches = [match for match in sorted(glob.glob(str(path))) if Path(match).is_file()]
    if not matches:
        raise FileNotFoundError(f"no shard at {name}")
    return matches
