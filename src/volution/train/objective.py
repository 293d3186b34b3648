"""What is made small: the loss of a batch."""

from __future__ import annotations

from timm.data import Mixup
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from volution.train.config import TrainConfig

__all__ = ["Objective"]


class Objective:
    """The loss of a network on a batch, as a configuration says.

    Args:
        config: The run's settings.
        num_classes: Classes to tell apart.
    """

    def __init__(self, config: TrainConfig, num_classes: int) -> None:
        self.smoothing = config.label_smoothing
        self.mix: Mixup | None = None
        if config.mixup or config.cutmix:
            self.mix = Mixup(
                config.mixup,
                config.cutmix,
                label_smoothing=config.label_smoothing,
                num_classes=num_classes,
            )

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of a batch; ``model`` maps images to logits."""
        if self.mix is None:
            return cross_entropy(model(images), labels, label_smoothing=self.smoothing)
        # Unreadable images can leave an odd number, of which one finds no partner.
        even = len(labels) - len(labels) % 2
        mixed, targets = self.mix(images[:even], labels[:even])
        return cross_entropy(model(mixed), targets)
