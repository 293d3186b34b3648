"""The handwritten digits that come with scikit-learn: data without a download."""

from __future__ import annotations

import numpy as np
from PIL import Image

from volution._support.extras import needs
from volution.data.division import VALIDATION_SHARE, split
from volution.data.images import ImageArrays, ImageData
from volution.data.transforms import Augmentation

__all__ = ["SIGNS", "digits"]

_SIZE = 32
SIGNS = Augmentation(scale=(0.7, 1.0), ratio=(0.85, 1 / 0.85), hflip=0.0, color_jitter=0.0)
"""For what is written: a mirrored digit is none."""


def digits() -> ImageData:
    """Return the digits that come with scikit-learn."""
    with needs("data"):
        from sklearn.datasets import load_digits
    scans = load_digits()
    labels = scans.target.tolist()
    # Enlarged once, and smoothly: a random crop of 8 by 8 pixels could only jump by whole pixels.
    images = np.stack(
        [
            np.asarray(Image.fromarray(scan).resize((_SIZE, _SIZE), Image.Resampling.BICUBIC))
            for scan in (scans.images * (255 / 16)).round().astype(np.uint8)
        ]
    )
    train, val = split(labels, VALIDATION_SHARE)
    return ImageData(
        name="digits",
        classes=tuple("0123456789"),
        channels=1,
        train=ImageArrays(images[train], [labels[i] for i in train]),
        val=ImageArrays(images[val], [labels[i] for i in val]),
        image_size=_SIZE,
        mean=(float(images[train].mean() / 255),),
        std=(float(images[train].std() / 255),),
        augmentation=SIGNS,
    )
