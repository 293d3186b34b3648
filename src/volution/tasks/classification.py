"""Image classification: the network for a dataset, its input, and how often it is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
from timm.data.config import resolve_data_config
from torch import Tensor, nn

from volution._support.names import unknown
from volution.data import ImageData, InputConfig

__all__ = ["Accuracy", "create_model", "input_config"]


_OF_FILES = frozenset({"checkpoint_path", "cache_dir", "pretrained_cfg", "pretrained_cfg_overlay"})


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    in_chans: int = 3,
    pretrained: bool = False,
    model_args: dict[str, Any] | None = None,
) -> nn.Module:
    """Return a network of volution or of timm by its name.

    Args:
        name: As in :func:`timm.create_model`.
        num_classes: Classes to tell apart; None leaves what the network comes with.
        in_chans: Channels of the images.
        pretrained: Start from published weights, where there are some.
        model_args: Further arguments of the network's class.

    Raises:
        ValueError: If there is no such network (the message has the nearest names), or
            ``model_args`` name files.
        TypeError: If the network does not take one of ``model_args``.

    Example:
        >>> narrow = create_model("rednet26", num_classes=3, model_args={"widths": (8, 8, 8, 8)})
        >>> narrow.num_classes
        3
        >>> create_model("rednet25")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: unknown model 'rednet25'; nearest: ...rednet26...
    """
    if not timm.is_model(name):
        raise ValueError(unknown("model", name, timm.list_models(), more="see `volution list`"))
    settings = dict(model_args or {})
    # A file's description may come from anybody, and must not name other files to open.
    files = sorted(settings.keys() & _OF_FILES)
    if files:
        raise ValueError(
            f"model_args must hold arguments of the network's class, got {', '.join(files)}; "
            f"weights to start from are named by weights or pretrained"
        )
    if num_classes is not None:
        settings["num_classes"] = num_classes
    return timm.create_model(name, pretrained=pretrained, in_chans=in_chans, **settings)


def input_config(
    model: nn.Module, data: ImageData | None = None, image_size: int | None = None
) -> InputConfig:
    """Return how a network's images are prepared.

    What the dataset knows better than the network, such as the mean of grey scans, counts more;
    ``image_size`` counts most.

    Args:
        model: A network of timm's kind, with a ``pretrained_cfg``.
        data: The dataset, if it is known.
        image_size: Side of the image.

    Raises:
        ValueError: If ``image_size`` is not positive.
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be at least 1, got {image_size}")
    config = resolve_data_config(model=model)
    channels = data.channels if data else config["input_size"][0]
    size = image_size or (data.image_size if data else None) or config["input_size"][-1]
    mean = (data.mean if data else None) or tuple(config["mean"])
    std = (data.std if data else None) or tuple(config["std"])
    if len(mean) != channels:
        mean, std = (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels
    # Asked for a size of one's own, cropping off the border would only lose pixels.
    own = data is not None and data.image_size is not None
    return InputConfig(
        channels,
        size,
        mean,
        std,
        config["interpolation"],
        1.0 if own else config["crop_pct"],
        config["crop_mode"],
    )


class Accuracy:
    """Counts how often a network is right, batch after batch.

    Args:
        num_classes: Classes to tell apart.

    Attributes:
        confusion: How many images of a class (row) were taken for a class (column).

    Example:
        >>> accuracy = Accuracy(num_classes=3)
        >>> accuracy.update(torch.tensor([[9.0, 0, 1], [9, 0, 1]]), torch.tensor([0, 2]))
        >>> accuracy.top1, accuracy.top5
        (0.5, 1.0)
        >>> accuracy.confusion.tolist()
        [[1, 0, 0], [0, 0, 0], [1, 0, 0]]
    """

    def __init__(self, num_classes: int) -> None:
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.long)
        self._among_five = 0

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: ``(N, num_classes)`` and ``(N,)``."""
        logits, labels = logits.detach().cpu(), labels.cpu()
        classes = self.confusion.shape[0]
        pairs = labels * classes + logits.argmax(1)
        self.confusion += torch.bincount(pairs, minlength=classes**2).view(classes, classes)
        best = logits.topk(min(5, classes), dim=1).indices
        self._among_five += int((best == labels[:, None]).any(1).sum())

    def combine(self, summed: Callable[[Tensor], Tensor]) -> None:
        """Take in what other processes counted.

        Args:
            summed: Returns the sum of a tensor over all of them.
        """
        self.confusion = summed(self.confusion)
        self._among_five = int(summed(torch.tensor([self._among_five])))

    @property
    def count(self) -> int:
        """Images so far."""
        return int(self.confusion.sum())

    @property
    def top1(self) -> float:
        """Share of images whose likeliest class is the right one; NaN without images."""
        return int(self.confusion.diagonal().sum()) / self.count if self.count else float("nan")

    @property
    def top5(self) -> float:
        """Share of images whose class is among the five likeliest; NaN without images."""
        return self._among_five / self.count if self.count else float("nan")
