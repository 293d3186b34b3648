"""A network that judges brightness: exact answers, in no time, for tests of measuring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from volution import data, tasks

GREYS = data.InputConfig(1, 8, (0.0,), (1.0,))


class Brightness(nn.Module):
    """Takes an image for the class of its brightness, and refuses images that are too small."""

    def __init__(self, classes: int = 4, sharpness: float = 20.0) -> None:
        super().__init__()
        self.register_buffer("centres", (torch.arange(classes) + 0.5) / classes)
        self.sharpness = sharpness

    def forward(self, x: Tensor) -> Tensor:
        if min(x.shape[2:]) < 4:
            raise ValueError(f"images must be at least 4 by 4, got {tuple(x.shape[2:])}")
        return -self.sharpness * (x.mean((1, 2, 3))[:, None] - self.centres).abs()


def brightness(**settings: Any) -> tasks.Classifier:
    """A classifier of grey images into equal ranges of brightness."""
    net = Brightness(**settings)
    names = tuple(f"grey{i}" for i in range(len(net.centres)))
    return tasks.Classifier(net, "brightness", names, GREYS)


def greys(levels: Sequence[int], labels: Sequence[int]) -> data.ImageArrays:
    """Even images of these levels."""
    return data.ImageArrays(np.stack([np.full((8, 8), v, np.uint8) for v in levels]), labels)
