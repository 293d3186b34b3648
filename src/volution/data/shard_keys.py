"""What samples are called in shards: the path of their file, as WebDataset can read it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from volution.data.images import ImageFiles, Images

__all__ = ["decoded", "encoded", "sample_keys"]


def encoded(path: str) -> str:
    """Return a key that stands for a path without its suffix.

    Readers of WebDataset end the key at the first dot of the file name and pass over names
    between double underscores; both are written as URLs write them.

    Example:
        >>> encoded("cats/tom.v2"), encoded("__old/100%")
        ('cats/tom%2Ev2', '%5F_old/100%25')
    """
    folder, slash, name = path.rpartition("/")
    key = folder + slash + name.replace("%", "%25").replace(".", "%2E")
    return "%5F" + key[1:] if key.startswith("__") else key


def decoded(key: str) -> str:
    """Return what :func:`encoded` was given.

    Example:
        >>> decoded(encoded("__old/100%.v2"))
        '__old/100%.v2'
    """
    start = "_" + key[3:] if key.startswith("%5F_") else key
    folder, slash, name = start.rpartition("/")
    return folder + slash + re.sub("%2E", ".", name).replace("%25", "%")


def sample_keys(splits: Sequence[Images]) -> list[list[str]]:
    """Return a key for each image of each split, none twice in a split.

    Images in files have keys after their paths below the folder that holds all of them; others
    are numbered.

    Args:
        splits: Images of the splits.
    """
    paths = [path for images in splits if isinstance(images, ImageFiles) for path in images.paths]
    root = Path(os.path.commonpath([path.parent for path in paths])) if paths else Path()
    return [_keys(images, root) for images in splits]


def _keys(images: Images, root: Path) -> list[str]:
    if not isinstance(images, ImageFiles):
        return [f"{i:08d}" for i in range(len(images))]
    keys: dict[str, None] = {}
    for path in images.paths:
        inside = path.relative_to(root)
        stem = encoded(inside.with_suffix("").as_posix())
        whole = encoded(inside.as_posix())
        # Two images of one folder may differ in their suffixes alone.
        key = stem if stem not in keys else whole
        number = 1
        while key in keys:
            key, number = f"{whole}~{number}", number + 1
        keys[key] = None
    return list(keys)
