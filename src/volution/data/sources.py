"""Where data comes from: a name becomes training and validation images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from volution._support.names import unknown
from volution.data.decoding import MAX_PIXELS
from volution.data.digits import digits
from volution.data.folders import folder, imagenet
from volution.data.huggingface import huggingface
from volution.data.images import ImageData
from volution.data.named import SETS, named
from volution.data.shards import load_shards
from volution.data.stream import Stream

__all__ = ["load"]


def load(name: str, *, max_pixels: int = MAX_PIXELS) -> ImageData:
    """Return the dataset of a name.

    Args:
        name: What to load:

            - ``"digits"``: 1,797 grey scans of handwritten digits that come with scikit-learn.
            - ``"folder:PATH"``: a folder that holds ``train/`` and ``val/`` (or ``validation/``,
              or ``test/``), each with one folder of images for each class; or the class folders
              themselves, of which a fifth of the images is then kept for validation.
            - ``"imagenet:PATH"``: likewise, with the 1,000 folders named as ``n01440764``, and
              ``train/`` left out where it is enough to measure.
            - ``"cifar10"``, ``"flowers102"`` and other sets of torchvision, which are downloaded
              once, to ``$VOLUTION_DATA`` or ``~/.cache/volution/data``; or ``"cifar10:PATH"``
              with another folder for it.
            - ``"wds:SHARDS"``: see :func:`volution.data.load_shards`.
            - ``"hf:NAME"`` or ``"hf:NAME:CONFIG"``: a dataset of the Hugging Face Hub; or
              ``"hf:PATH"``, a folder in one of its formats.
        max_pixels: Images of more pixels are refused when they are read.

    Raises:
        ValueError: If the name means nothing, there are no such images, or they cannot be loaded;
            or if there is only one class, or a label that is none.
        FileNotFoundError: If there is no such folder.
        MissingExtra: If it takes a package that is not installed.
    """
    kind, colon, place = name.partition(":")
    data = _load(name, kind, place, max_pixels)
    if data is None:
        if not colon and Path(name).is_dir():
            raise ValueError(
                f"unknown dataset {name!r}; for the folder of that name: folder:{name}"
            )
        known = ["digits", *SETS, *(f"{kind}:{what}" for kind, (what, _) in _PLACES.items())]
        raise ValueError(unknown("dataset", name, known))
    _check(data)
    return data


_PLACES: Mapping[str, tuple[str, Callable[[str, str, int], ImageData]]] = {
    "folder": ("PATH", folder),
    "imagenet": ("PATH", imagenet),
    "hf": ("NAME", huggingface),
    "wds": ("SHARDS", lambda _, place, limit: load_shards(place, max_pixels=limit)),
}
"""Kinds of data with a place after the colon."""


def _load(name: str, kind: str, place: str, max_pixels: int) -> ImageData | None:
    if name == "digits":
        return digits()
    if kind in SETS and (place or name == kind):
        return named(name, kind, place, max_pixels)
    if kind in _PLACES and place:
        return _PLACES[kind][1](name, place, max_pixels)
    return None


def _check(data: ImageData) -> None:
    if len(data.classes) < 2:
        raise ValueError(
            f"data {data.name} has one class, {data.classes[0]}; it takes two to tell apart"
            if data.classes
            else f"data {data.name} has no class"
        )
    for part in (data.train, data.val):
        if isinstance(part, Stream):  # its labels are checked when they are read
            continue
        labels = np.asarray(part.labels, dtype=object)
        wrong = [i for i, label in enumerate(labels) if label is None]
        if not wrong and len(labels):
            numbers = labels.astype(np.int64)
            wrong = np.flatnonzero((numbers < 0) | (numbers >= len(data.classes))).tolist()
        if wrong:
            raise ValueError(
                f"data {data.name}: label {labels[wrong[0]]} of {part.name(wrong[0])} is not from "
                f"0 to {len(data.classes) - 1}; so it is with {len(wrong)} of {len(labels)} images"
            )
