"""What is made small: the loss of a batch."""

from __future__ import annotations

from timm.data import Mixup
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from volution.train.config import TrainConfig
from volution.train.distillation import Teacher, distillation_loss

__all__ = ["Objective"]


class Objective:
    """The loss of a network on a batch, as a configuration says.

    Args:
        config: The run's settings.
        num_classes: Classes to tell apart.
        teacher: What it learns from besides the labels.
    """

    def __init__(
        self, config: TrainConfig, num_classes: int, teacher: Teacher | None = None
    ) -> None:
        self.config = config
        self.smoothing = config.label_smoothing
        self.teacher = teacher
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
            logits = model(images)
            loss = cross_entropy(logits, labels, label_smoothing=self.smoothing)
            return self._with_teacher(loss, logits, images)
        # Unreadable images can leave an odd number, of which one finds no partner.
        even = len(labels) - len(labels) % 2
        mixed, targets = self.mix(images[:even], labels[:even])
        logits = model(mixed)
        return self._with_teacher(cross_entropy(logits, targets), logits, mixed)

    def _with_teacher(self, loss: Tensor, logits: Tensor, images: Tensor) -> Tensor:
        """Return the loss together with the teacher's share; it sees what the student saw."""
        if self.teacher is None:
            return loss
        config = self.config
        taught = distillation_loss(
            logits,
            self.teacher(images),
            kind=config.distill,
            temperature=config.distill_temperature,
        )
        return (1 - config.distill_alpha) * loss + config.distill_alpha * taught
