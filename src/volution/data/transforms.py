"""From a picture to what a network is fed: timm's transforms, with their settings kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment
from timm.data.transforms import MaybeToTensor
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torchvision.transforms import Normalize

__all__ = ["Augmentation", "InputConfig"]

Transform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class Augmentation:
    """How training images are varied; the meanings are those of timm's ``create_transform``.

    Args:
        scale: Least and greatest share of the area that a random crop keeps.
        ratio: Least and greatest width of a crop over its height.
        hflip: Probability of a mirror image.
        color_jitter: Strength of random brightness, contrast and saturation.
        auto_augment: A policy of timm, such as ``"rand-m9-mstd0.5"``.
        random_erasing: Probability of painting over a random rectangle.
    """

    scale: tuple[float, float] = (0.35, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)
    hflip: float = 0.5
    color_jitter: float = 0.4
    auto_augment: str | None = None
    random_erasing: float = 0.0


@dataclass(frozen=True)
class InputConfig:
    """What a network expects of its images; stored with every checkpoint.

    Args:
        channels: 3 for RGB, 1 for grey.
        image_size: Side of the square image.
        mean: Subtracted from each channel, whose values are from 0 to 1.
        std: Then divided by.
        interpolation: How images are resized.
        crop_pct: Share of the resized image that the centre crop keeps, when not training.
        crop_mode: How an image becomes square before that: ``"center"`` fits its short side in,
            ``"squash"`` both sides, ``"border"`` its long side, with a border of the mean colour.

    Example:
        >>> config = InputConfig(channels=1, image_size=8, mean=(0.5,), std=(0.5,))
        >>> config.transform()(Image.new("L", (20, 10))).shape
        torch.Size([1, 8, 8])
        >>> InputConfig.from_json(config.to_json()) == config
        True
    """

    channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: str = "center"

    def transform(self) -> Transform:
        """Return the transform for measuring and predicting: resize, centre crop, normalise."""
        return self._create(is_training=False, crop_pct=self.crop_pct, crop_mode=self.crop_mode)

    def training_transform(self, augmentation: Augmentation) -> Transform:
        """Return the transform for training: random crop and what ``augmentation`` says."""
        settings = asdict(augmentation)
        return self._create(is_training=True, re_prob=settings.pop("random_erasing"), **settings)

    def _create(self, **settings: Any) -> Transform:
        transform: Transform = create_transform(
            (self.channels, self.image_size, self.image_size),
            mean=self.mean,
            std=self.std,
            interpolation=self.interpolation,
            **settings,
        )
        _posterize_to_black(transform)
        _normalise_at_once(transform)
        return transform

    def to_json(self) -> str:
        """Return the settings as JSON, for a checkpoint's metadata."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> InputConfig:
        """Read what :meth:`to_json` wrote."""
        settings = json.loads(text)
        return cls(**{**settings, "mean": tuple(settings["mean"]), "std": tuple(settings["std"])})


class _Pixels:
    """From an image to a normalised tensor whose memory is channels-last, as batches are."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = torch.tensor(mean)
        self.std = torch.tensor(std)

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = np.array(image)
        height, width = pixels.shape[:2]
        if pixels.size != height * width * len(self.mean):
            raise ValueError(
                f"an image of mode {image.mode} was given where {len(self.mean)} channels are "
                f"expected"
            )
        # A row at a time: three numbers would be too few for the processor to be quick with.
        rows = torch.from_numpy(pixels).view(height, -1).float().div_(255)
        rows.sub_(self.mean.repeat(width)).div_(self.std.repeat(width))
        return rows.view(height, width, -1).permute(2, 0, 1)


def _normalise_at_once(transform: Any) -> None:
    """Put one step in the place of timm's last two, to the same numbers in a third of the time."""
    steps = transform.transforms
    for i, (first, second) in enumerate(pairwise(steps)):
        if isinstance(first, MaybeToTensor) and isinstance(second, Normalize):
            steps[i : i + 2] = [_Pixels(second.mean.tolist(), second.std.tolist())]
            return
    raise RuntimeError(f"timm's transform has other last steps than before: {steps}")


def _posterize_to_black(transform: Any) -> None:
    """Let strong augmentation policies keep no bit at all, as they do at their greatest magnitude.

    Newer versions of Pillow raise then, where older ones gave the black image that is meant.
    """
    for step in getattr(transform, "transforms", ()):
        groups = [getattr(step, "ops", ()), *getattr(step, "policy", ())]
        for operation in (operation for group in groups for operation in group):
            if getattr(operation, "aug_fn", None) is auto_augment.posterize:
                operation.aug_fn = _posterize


def _posterize(image: Image.Image, bits_to_keep: int, **settings: Any) -> Image.Image:
    if bits_to_keep < 1:
        return Image.new(image.mode, image.size)
    kept: Image.Image = auto_augment.posterize(image, bits_to_keep, **settings)
    return kept
