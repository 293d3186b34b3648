"""Labelled images, from memory or from files, before any transform."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from volution.data.decoding import MAX_PIXELS, open_image
from volution.data.transforms import Augmentation

__all__ = ["ImageArrays", "ImageData", "ImageFiles", "Images", "find_images"]

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""File names that end so are images, in small or capital letters."""


class Images(Protocol):
    """A sequence of labelled images, opened one at a time."""

    @property
    def labels(self) -> Sequence[int]:
        """Class numbers."""
        ...

    def __len__(self) -> int: ...

    def open(self, index: int) -> Image.Image:
        """Return one image; raises ``ValueError`` if it cannot be read."""
        ...

    def name(self, index: int) -> str:
        """Return what to call an image: its path, or its number."""
        ...


@dataclass(frozen=True)
class ImageArrays:
    """Images held in memory.

    Args:
        arrays: Pixels, ``(N, H, W)`` for grey or ``(N, H, W, 3)`` for RGB, uint8.
        labels: Class numbers.
    """

    arrays: np.ndarray
    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.labels)

    def open(self, index: int) -> Image.Image:
        return Image.fromarray(self.arrays[index])

    def name(self, index: int) -> str:
        return f"#{index}"


@dataclass(frozen=True)
class ImageFiles:
    """Images that lie in files.

    Args:
        paths: The files.
        labels: Class numbers.
        channels: 3 reads RGB, 1 grey.
        max_pixels: Larger images are refused.
    """

    paths: Sequence[Path]
    labels: Sequence[int]
    channels: int = 3
    max_pixels: int = MAX_PIXELS

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, index: int) -> Image.Image:
        return open_image(self.paths[index], self.channels, self.max_pixels)

    def name(self, index: int) -> str:
        return str(self.paths[index])


@dataclass(frozen=True)
class ImageData:
    """What a network is trained and measured on.

    Args:
        name: As given to :func:`volution.data.load`.
        classes: Names of the classes; a label is a position in it.
        channels: Channels of the images.
        train: Images to learn from; none where the data is only to measure with.
        val: Images to measure with.
        image_size: Side to use where none is asked for; None leaves it to the network.
        mean: Mean of each channel, of values from 0 to 1; None leaves it to the network.
        std: Standard deviation of each channel, likewise.
        augmentation: How training images may be varied.
    """

    name: str
    classes: tuple[str, ...]
    channels: int
    train: Images
    val: Images
    image_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    augmentation: Augmentation = field(default_factory=Augmentation)


def find_images(folder: Path) -> list[Path]:
    """Return the image files below a folder, in order; hidden ones are passed over."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
