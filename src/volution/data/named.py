"""Public datasets by their names, the way torchvision keeps them."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from volution._support.extras import needs
from volution.data.digits import SIGNS
from volution.data.division import VALIDATION_SHARE, split
from volution.data.images import ImageArrays, ImageData, ImageFiles
from volution.data.transforms import Augmentation

__all__ = ["SETS", "data_root", "named"]

_SMALL = Augmentation(scale=(0.6, 1.0))


@dataclass(frozen=True)
class _Set:
    """A dataset of torchvision.

    Args:
        kind: Its class in ``torchvision.datasets``.
        folder: What lies in the root when it is there.
        train: Arguments for each of the parts to learn from.
        val: Arguments for the part to measure with; None keeps a fifth of ``train``.
        image_size: Side to use where none is asked for; None leaves it to the network.
        augmentation: How training images may be varied.
    """

    kind: str
    folder: str
    train: Sequence[Mapping[str, Any]] = ({"train": True},)
    val: Mapping[str, Any] | None = field(default_factory=lambda: {"train": False})
    image_size: int | None = None
    augmentation: Augmentation = field(default_factory=Augmentation)


_TRAIN, _TEST = {"split": "train"}, {"split": "test"}
# Of three parts the literature learns from two and reports the third.
_TWO = (_TRAIN, {"split": "val"})

SETS: Mapping[str, _Set] = {
    "cifar10": _Set("CIFAR10", "cifar-10-batches-py", image_size=32, augmentation=_SMALL),
    "cifar100": _Set("CIFAR100", "cifar-100-python", image_size=32, augmentation=_SMALL),
    "mnist": _Set("MNIST", "MNIST", image_size=32, augmentation=SIGNS),
    "kmnist": _Set("KMNIST", "KMNIST", image_size=32, augmentation=SIGNS),
    "fashionmnist": _Set(
        "FashionMNIST",
        "FashionMNIST",
        image_size=32,
        augmentation=Augmentation(scale=(0.7, 1.0), color_jitter=0.0),
    ),
    "usps": _Set("USPS", "usps.bz2", image_size=32, augmentation=SIGNS),
    "svhn": _Set(
        "SVHN",
        "train_32x32.mat",
        (_TRAIN,),
        _TEST,
        32,
        Augmentation(scale=(0.7, 1.0), ratio=(0.85, 1 / 0.85), hflip=0.0),
    ),
    "stl10": _Set("STL10", "stl10_binary", (_TRAIN,), _TEST, 96, _SMALL),
    "flowers102": _Set("Flowers102", "flowers-102", _TWO, _TEST),
    "food101": _Set("Food101", "food-101", (_TRAIN,), _TEST),
    "oxfordpets": _Set("OxfordIIITPet", "oxford-iiit-pet", ({"split": "trainval"},), _TEST),
    "dtd": _Set("DTD", "dtd", _TWO, _TEST),
    "aircraft": _Set("FGVCAircraft", "fgvc-aircraft-2013b", ({"split": "trainval"},), _TEST),
    "country211": _Set("Country211", "country211", (_TRAIN,), {"split": "valid"}),
    "imagenette": _Set("Imagenette", "imagenette2", (_TRAIN,), {"split": "val"}),
    "eurosat": _Set("EuroSAT", "eurosat", ({},), None, 64),
    "gtsrb": _Set(
        "GTSRB", "gtsrb", (_TRAIN,), _TEST, 64, Augmentation(scale=(0.7, 1.0), hflip=0.0)
    ),
}
"""The sets of torchvision that can be asked for by name."""


def data_root() -> Path:
    """Return the folder for downloaded datasets: ``$VOLUTION_DATA``, or one in the user's cache."""
    default = Path("~/.cache/volution/data")
    return Path(os.environ.get("VOLUTION_DATA") or default).expanduser()


_Kept = ImageArrays | ImageFiles


def named(name: str, kind: str, place: str, max_pixels: int) -> ImageData:
    """Return a set of torchvision, see :func:`volution.data.load`; downloads it if need be."""
    wanted, root = SETS[kind], Path(place).expanduser() if place else data_root()
    parts = _parts(kind, wanted, root)
    train = _joined([_images(part, max_pixels) for part in parts[: len(wanted.train)]])
    val: _Kept
    if wanted.val is None:
        first, second = split(train.labels, VALIDATION_SHARE)
        train, val = _subset(train, first), _subset(train, second)
    else:
        val = _images(parts[-1], max_pixels)
    grey = isinstance(train, ImageArrays) and train.arrays.ndim == 3
    mean, std = _statistics(train.arrays) if isinstance(train, ImageArrays) else (None, None)
    return ImageData(
        name=name,
        classes=_class_names(parts[0], train.labels),
        channels=1 if grey else 3,
        train=train,
        val=val,
        image_size=wanted.image_size,
        mean=mean,
        std=std,
        augmentation=wanted.augmentation,
    )


def _parts(kind: str, wanted: _Set, root: Path) -> list[Any]:
    """Return torchvision's datasets for the parts, the one to measure with last."""
    from torchvision import datasets

    make: Callable[..., Any] = getattr(datasets, wanted.kind)
    settings = [*wanted.train, *([] if wanted.val is None else [wanted.val])]
    if not (root / wanted.folder).exists():
        _download(kind, wanted, make, settings, root)
    try:
        return [make(root, **part) for part in settings]
    except ModuleNotFoundError as error:
        with needs("data"):  # scipy, which reads the lists of some sets
            raise error
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"data {kind}: {root / wanted.folder} is not complete ({_line(error)}); remove it to "
            f"have it downloaded again"
        ) from error


def _download(
    kind: str,
    wanted: _Set,
    make: Callable[..., Any],
    settings: Sequence[Mapping[str, Any]],
    root: Path,
) -> None:
    from filelock import FileLock

    unfinished = root / f".{kind}.unfinished"
    try:
        root.mkdir(parents=True, exist_ok=True)
        # Of several processes one downloads; whole or not at all, as torchvision takes half an
        # archive for all of it when it finds the folder.
        with FileLock(root / f".{kind}.lock"), redirect_stdout(sys.stderr):
            if (root / wanted.folder).exists():
                return
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            for part in settings:
                make(unfinished, download=True, **part)
            # What shows that all is there comes last.
            for path in sorted(unfinished.iterdir(), key=lambda p: p.name == wanted.folder):
                os.replace(path, root / path.name)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"data {kind}: cannot be downloaded ({_line(error)}); put {wanted.folder} into {root}, "
            f"or give the folder that holds it: {kind}:FOLDER"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _images(part: Any, max_pixels: int) -> _Kept:
    """Return the images of one of torchvision's datasets, which keep them under many names."""
    pairs = getattr(part, "_samples", None) or getattr(part, "samples", None)
    if pairs is not None:
        return ImageFiles([Path(p) for p, _ in pairs], [i for _, i in pairs], max_pixels=max_pixels)
    paths = getattr(part, "_image_files", None) or getattr(part, "_images", None)
    if paths is not None:
        return ImageFiles([Path(p) for p in paths], list(part._labels), max_pixels=max_pixels)
    arrays = np.asarray(part.data)
    if arrays.ndim == 4 and arrays.shape[1] == 3 and arrays.shape[3] != 3:
        arrays = np.ascontiguousarray(arrays.transpose(0, 2, 3, 1))
    labels = part.targets if hasattr(part, "targets") else part.labels
    return ImageArrays(arrays, np.asarray(labels).tolist())


def _joined(parts: Sequence[_Kept]) -> _Kept:
    first, labels = parts[0], [label for part in parts for label in part.labels]
    if isinstance(first, ImageFiles):
        paths = [path for part in parts if isinstance(part, ImageFiles) for path in part.paths]
        return ImageFiles(paths, labels, max_pixels=first.max_pixels)
    arrays = [part.arrays for part in parts if isinstance(part, ImageArrays)]
    return ImageArrays(arrays[0] if len(arrays) == 1 else np.concatenate(arrays), labels)


def _subset(images: _Kept, positions: Sequence[int]) -> _Kept:
    labels = [images.labels[i] for i in positions]
    if isinstance(images, ImageArrays):
        return ImageArrays(images.arrays[list(positions)], labels)
    paths = [images.paths[i] for i in positions]
    return ImageFiles(paths, labels, max_pixels=images.max_pixels)


def _statistics(arrays: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of each channel, of values from 0 to 1, without a float copy."""
    channels = arrays[..., None] if arrays.ndim == 3 else arrays
    values = np.arange(256) / 255
    mean, std = [], []
    for channel in np.moveaxis(channels, -1, 0):
        shares = np.bincount(channel.ravel(), minlength=256) / channel.size
        mean.append(float(shares @ values))
        std.append(float(np.sqrt(shares @ (values - mean[-1]) ** 2)))
    return tuple(mean), tuple(std)


def _class_names(part: Any, labels: Sequence[int]) -> tuple[str, ...]:
    names = getattr(part, "classes", None) or range(max(labels) + 1)
    return tuple(name[0] if isinstance(name, tuple) else str(name) for name in names)
