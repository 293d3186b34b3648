"""Where data comes from: a name becomes training and validation images."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from volution._support.extras import needs
from volution._support.names import unknown
from volution.data.images import ImageArrays, ImageData, ImageFiles, find_images
from volution.data.shards import load_shards
from volution.data.transforms import Augmentation

__all__ = ["load", "split"]

_VALIDATION_SHARE = 0.2
_VALIDATION_FOLDERS = ("val", "validation", "test")
_DIGITS_SIZE = 32


def load(name: str) -> ImageData:
    """Return the dataset of a name.

    Args:
        name: ``"digits"``, 1,797 grey scans of handwritten digits that come with scikit-learn;
            or ``"folder:PATH"``, a folder that holds ``train/`` and ``val/`` (or
            ``validation/``, or ``test/``), each with one folder of images for each class; or
            the class folders themselves, of which every fifth image is then kept for validation;
            or ``"wds:..."``, shards, see :func:`volution.data.load_shards`.

    Raises:
        ValueError: If the name means nothing, or the folder holds no such images.
        FileNotFoundError: If there is no such folder.
        MissingExtra: If the digits are asked for and scikit-learn is not installed.
    """
    kind, colon, path = name.partition(":")
    if kind == "folder" and path:
        return _folder(name, Path(path).expanduser())
    if kind == "wds" and path:
        return load_shards(path)
    if name == "digits":
        return _digits()
    if not colon and Path(name).is_dir():
        raise ValueError(f"unknown dataset {name!r}; for the folder of that name: folder:{name}")
    raise ValueError(unknown("dataset", name, ["digits", "folder:PATH"]))


def split(labels: Sequence[int], share: float, seed: int = 0) -> tuple[list[int], list[int]]:
    """Divide positions into two lists, with the same mixture of labels in both.

    Args:
        labels: One label for each position.
        share: How much of each label goes into the second list, at least one if there are two.
        seed: Draws another division.

    Returns:
        Positions in ascending order.

    Example:
        >>> split([0, 0, 0, 0, 1, 1, 1, 1], share=0.25)
        ([0, 1, 2, 4, 5, 6], [3, 7])
    """
    by_label = defaultdict(list)
    for position, label in enumerate(labels):
        by_label[label].append(position)
    rng = random.Random(seed)
    second: set[int] = set()
    for _, positions in sorted(by_label.items()):
        count = round(len(positions) * share) or min(1, len(positions) - 1)
        second.update(rng.sample(positions, count))
    return [i for i in range(len(labels)) if i not in second], sorted(second)


def _digits() -> ImageData:
    with needs("data"):
        from sklearn.datasets import load_digits
    scans = load_digits()
    labels = scans.target.tolist()
    # Enlarged once, and smoothly: a random crop of 8 by 8 pixels could only jump by whole pixels.
    side = (_DIGITS_SIZE, _DIGITS_SIZE)
    images = np.stack(
        [
            np.asarray(Image.fromarray(scan).resize(side, Image.Resampling.BICUBIC))
            for scan in (scans.images * (255 / 16)).round().astype(np.uint8)
        ]
    )
    train, val = split(labels, _VALIDATION_SHARE)
    return ImageData(
        name="digits",
        classes=tuple("0123456789"),
        channels=1,
        train=ImageArrays(images[train], [labels[i] for i in train]),
        val=ImageArrays(images[val], [labels[i] for i in val]),
        image_size=_DIGITS_SIZE,
        mean=(float(images[train].mean() / 255),),
        std=(float(images[train].std() / 255),),
        # A mirrored digit is none.
        augmentation=Augmentation(
            scale=(0.7, 1.0), ratio=(0.85, 1 / 0.85), hflip=0.0, color_jitter=0.0
        ),
    )


def _folder(name: str, root: Path) -> ImageData:
    if not root.is_dir():
        what = "is a file" if root.is_file() else "does not exist"
        raise FileNotFoundError(f"data folder {root} {what}")
    if not (root / "train").is_dir():
        classes = _classes(root)
        paths, labels = _scan(root, classes)
        train, val = split(labels, _VALIDATION_SHARE)
        return ImageData(
            name,
            classes,
            3,
            ImageFiles([paths[i] for i in train], [labels[i] for i in train]),
            ImageFiles([paths[i] for i in val], [labels[i] for i in val]),
        )
    held_out = next((root / n for n in _VALIDATION_FOLDERS if (root / n).is_dir()), None)
    if held_out is None:
        raise ValueError(
            f"data folder {root} has train/ but none of {', '.join(_VALIDATION_FOLDERS)}; add "
            f"one, or give {root / 'train'} to have a fifth of it kept for validation"
        )
    classes = _classes(root / "train")
    strange = sorted(set(_classes(held_out)) - set(classes))
    if strange:
        raise ValueError(f"{held_out} has classes that train/ has not: {', '.join(strange)}")
    train_files, val_files = (_scan(part, classes) for part in (root / "train", held_out))
    return ImageData(name, classes, 3, ImageFiles(*train_files), ImageFiles(*val_files))


def _classes(folder: Path) -> tuple[str, ...]:
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if len(names) < 2:
        found = f"only {names[0]}/" if names else "no folder at all"
        raise ValueError(
            f"data folder {folder} must hold one folder of images for each of at least two "
            f"classes, it holds {found}"
        )
    return tuple(names)


def _scan(folder: Path, classes: Sequence[str]) -> tuple[list[Path], list[int]]:
    found = [(path, i) for i, name in enumerate(classes) for path in find_images(folder / name)]
    if not found:
        raise ValueError(f"data folder {folder} holds no image in its class folders")
    return [path for path, _ in found], [label for _, label in found]
