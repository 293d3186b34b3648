"""Images in class folders: one's own, and those of ImageNet."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from volution.data.division import VALIDATION_SHARE, split
from volution.data.images import ImageData, ImageFiles, find_images

__all__ = ["folder", "imagenet"]

_VALIDATION_FOLDERS = ("val", "validation", "test")


def folder(name: str, place: str, max_pixels: int) -> ImageData:
    """Return the images of ``folder:PLACE``, see :func:`volution.data.load`."""
    root = _existing(place)
    if not (root / "train").is_dir():
        classes = _classes(root)
        paths, labels = _scan(root, classes)
        parts = split(labels, VALIDATION_SHARE)
        train, val = (
            ImageFiles([paths[i] for i in part], [labels[i] for i in part], max_pixels=max_pixels)
            for part in parts
        )
        return ImageData(name, classes, 3, train, val)
    held_out = _held_out(root)
    if held_out is None:
        raise ValueError(
            f"data folder {root} has train/ but none of {', '.join(_VALIDATION_FOLDERS)}; add "
            f"one, or give {root / 'train'} to have a fifth of it kept for validation"
        )
    classes = _classes(root / "train")
    strange = sorted(set(_classes(held_out)) - set(classes))
    if strange:
        raise ValueError(f"{held_out} has classes that train/ has not: {', '.join(strange)}")
    train, val = (
        ImageFiles(*_scan(part, classes), max_pixels=max_pixels)
        for part in (root / "train", held_out)
    )
    return ImageData(name, classes, 3, train, val)


def imagenet(name: str, place: str, max_pixels: int) -> ImageData:
    """Return the images of ``imagenet:PLACE``, see :func:`volution.data.load`."""
    from timm.data import ImageNetInfo

    root, info = _existing(place), ImageNetInfo("imagenet-1k")
    wnids = tuple(info.label_names())
    names = [info.index_to_description(i).partition(",")[0] for i in range(len(wnids))]
    # A crane is a bird and a machine.
    shared = {n for n, count in Counter(names).items() if count > 1}
    classes = tuple(f"{n} ({w})" if n in shared else n for n, w in zip(names, wnids, strict=True))
    held_out = _held_out(root)
    if held_out is None:
        raise ValueError(
            f"data {name}: {root} must hold val/, with a folder of images for each of the "
            f"{len(wnids)} classes, named as n01440764"
        )
    files: list[ImageFiles] = []
    for part in (root / "train", held_out):
        if not part.is_dir():  # enough to measure with
            files.append(ImageFiles([], [], max_pixels=max_pixels))
            continue
        missing = [wnid for wnid in wnids if not (part / wnid).is_dir()]
        if missing:
            raise ValueError(
                f"data {name}: {part} has no folder for {len(missing)} of the {len(wnids)} "
                f"classes, such as {', '.join(missing[:3])}"
            )
        files.append(ImageFiles(*_scan(part, wnids), max_pixels=max_pixels))
    return ImageData(name, classes, 3, train=files[0], val=files[1])


def _existing(place: str) -> Path:
    root = Path(place).expanduser()
    if not root.is_dir():
        what = "is a file" if root.is_file() else "does not exist"
        raise FileNotFoundError(f"data folder {root} {what}")
    return root


def _held_out(root: Path) -> Path | None:
    return next((root / n for n in _VALIDATION_FOLDERS if (root / n).is_dir()), None)


def _classes(folder: Path) -> tuple[str, ...]:
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    if len(names) < 2:
        found = f"only {names[0]}/" if names else "no folder at all"
        raise ValueError(
            f"data folder {folder} must hold one folder of images for each of at least two "
            f"classes, it holds {found}"
        )
    return tuple(names)


def _scan(folder: Path, classes: Sequence[str]) -> tuple[list[Path], list[int]]:
    """Return the images in the folders of classes, and their labels; missing folders are empty."""
    found = [find_images(folder / name) if (folder / name).is_dir() else None for name in classes]
    if not any(found):
        raise ValueError(f"data folder {folder} holds no image in its class folders")
    empty = [f"{c}/" for c, paths in zip(classes, found, strict=True) if paths == []]
    if empty:
        more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
        raise ValueError(
            f"data folder {folder} has class folders without images: "
            f"{', '.join(empty[:5])}{more}; fill or remove them"
        )
    pairs = [(path, i) for i, paths in enumerate(found) for path in paths or ()]
    return [path for path, _ in pairs], [label for _, label in pairs]
