"""Which files names stand for: walked in a fixed order, without a list of all of them."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from volution.data.images import SUFFIXES

__all__ = ["find_paths", "walk_paths"]


def find_paths(names: Sequence[str]) -> list[Path]:
    """Return the image files that names stand for, all at once; see :func:`walk_paths`."""
    return [Path(path) for path in walk_paths(names)]


def walk_paths(names: Sequence[str]) -> Iterator[str]:
    """Yield the image files that names stand for, one after the other.

    Files come in the order of the names, those of a folder as ``sorted`` orders paths. Only one
    folder's listing is held at a time, and the matches of a pattern.

    Args:
        names: Files, folders (searched with all folders in them; hidden ones and links to folders
            are left out) and patterns such as ``photos/**/*.jpg``.

    Returns:
        Paths, each once, however many of the names stand for it.

    Raises:
        FileNotFoundError: If a name stands for nothing; when its turn comes.
        ValueError: If a folder holds no image; likewise.
    """
    folders = list[Path]()
    single = set[str]()
    for name in names:
        path = Path(name).expanduser()
        is_folder, found = path.is_dir(), False
        for file in _walk(str(path)) if is_folder else _matches(path):
            found = True
            if file not in single and not any(_holds(folder, file) for folder in folders):
                yield file
            if not is_folder:
                single.add(file)
        if not found and is_folder:
            raise ValueError(f"folder {name} holds no image")
        if not found:
            raise FileNotFoundError(f"no image at {name}")
        if is_folder:
            folders.append(path)


def _matches(path: Path) -> Iterator[str]:
    if path.is_file():
        yield str(path)
        return
    # Also a pattern that the shell has left alone, on systems whose shell does.
    found = (Path(match) for match in glob.iglob(str(path), recursive=True))
    yield from map(str, sorted(match for match in found if match.is_file()))


def _walk(folder: str) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            # Names alone, as an entry holds on to much more.
            listed = sorted(
                (entry.name, entry.is_dir(follow_symlinks=False))
                for entry in entries
                if not entry.name.startswith(".") and _wanted(entry)
            )
    except OSError as error:
        raise OSError(f"cannot look into folder {folder}: {error.strerror or error}") from error
    for name, is_folder in listed:
        path = str(Path(folder, name))
        if is_folder:
            yield from _walk(path)
        else:
            yield path


def _wanted(entry: os.DirEntry[str]) -> bool:
    if entry.is_dir(follow_symlinks=False):
        return True
    return _is_image(entry.name) and entry.is_file()


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _holds(folder: Path, file: str) -> bool:
    """Say whether a file is among those that walking through a folder yields."""
    path = Path(file)
    if not path.is_relative_to(folder) or not _is_image(path.name):
        return False
    inside = path.relative_to(folder)
    if any(part.startswith(".") for part in inside.parts):
        return False
    return not any((folder / above).is_symlink() for above in inside.parents if above.name)
