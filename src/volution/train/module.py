"""The classification task as Lightning sees it: steps, optimiser, schedule."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.scheduler.scheduler_factory import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from volution.data import Batch, Shuffled
from volution.tasks import Accuracy
from volution.train.config import TrainConfig

__all__ = ["ClassificationModule"]


class ClassificationModule(LightningModule):
    """Train a classifier as a configuration says.

    Args:
        model: The network.
        config: The run's settings.
        num_classes: Classes to tell apart.
        train_loader: Batches to learn from, shuffled.
        val_loader: Batches to measure with.

    Attributes:
        average: The moving average of the weights, if there is one.
        judged: What is measured and kept: the average where there is one, or the network.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        num_classes: int,
        train_loader: DataLoader[Batch],
        val_loader: DataLoader[Batch],
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.num_classes = num_classes
        self.loaders = train_loader, val_loader
        self.accuracy = Accuracy(num_classes)
        self.broken: dict[str, None] = {}  # a set that keeps its order
        self.average: ModelEmaV3 | None = None
        if config.ema_decay is not None:
            self.average = ModelEmaV3(model, decay=config.ema_decay)
            self.average.requires_grad_(False)
        self.mix: Mixup | None = None
        if config.mixup or config.cutmix:
            self.mix = Mixup(
                config.mixup,
                config.cutmix,
                label_smoothing=config.label_smoothing,
                num_classes=num_classes,
            )

    @property
    def judged(self) -> nn.Module:
        return self.model if self.average is None else self.average.module

    def forward(self, images: Tensor) -> Tensor:
        model = self.model if self.training else self.judged
        # The compiled kernels and oneDNN both work best on channels-last.
        logits: Tensor = model(images.to(memory_format=torch.channels_last))
        return logits

    def train_dataloader(self) -> DataLoader[Batch]:
        # A resumed run asks for its first batch before Lightning tells the sampler the epoch.
        sampler = self.loaders[0].sampler
        assert isinstance(sampler, Shuffled)
        sampler.set_epoch(self.trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]
        return self.loaders[0]

    def val_dataloader(self) -> DataLoader[Batch]:
        return self.loaders[1]

    def on_train_epoch_start(self) -> None:
        # Dropout draws anew in each epoch, whatever came before: a resumed run repeats it.
        seed = self.config.seed * 100_003 + self.current_epoch
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - what timm mixes with

    def training_step(self, batch: Batch, index: int) -> Tensor | None:
        self.broken.update(dict.fromkeys(batch.broken))
        if len(batch.labels) < 2:  # too few are readable for batch statistics
            return None
        loss = self._loss(batch.images, batch.labels)
        if not torch.isfinite(loss):
            raise ValueError(
                f"the loss is {loss.item()} in epoch {self.current_epoch + 1}; lower the learning "
                f"rate (lr={self.config.lr}) or warm up longer"
            )
        self.log("train_loss", loss, on_epoch=True, on_step=False, batch_size=len(batch.labels))
        return loss

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        if self.mix is None:
            smoothing = self.config.label_smoothing
            return cross_entropy(self(images), labels, label_smoothing=smoothing)
        # Unreadable images can leave an odd number, of which one finds no partner.
        even = len(labels) - len(labels) % 2
        mixed, targets = self.mix(images[:even], labels[:even])
        return cross_entropy(self(mixed), targets)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            self.average.update(self.model)

    def on_validation_epoch_start(self) -> None:
        self.accuracy = Accuracy(self.num_classes)

    def validation_step(self, batch: Batch, index: int) -> None:
        self.broken.update(dict.fromkeys(batch.broken))
        if len(batch.labels) == 0:
            return
        logits = self(batch.images)
        self.log("val_loss", cross_entropy(logits, batch.labels), batch_size=len(batch.labels))
        self.accuracy.update(logits, batch.labels)

    def on_validation_epoch_end(self) -> None:
        self.log("val_top1", self.accuracy.top1)
        self.log("val_top5", self.accuracy.top5)

    def configure_optimizers(self) -> Any:
        config = self.config
        optimizer = create_optimizer_v2(
            self.model,
            opt=config.optimizer,
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            layer_decay=config.layer_decay,
        )
        falling = config.epochs - config.cooldown_epochs
        schedules: dict[str, tuple[str, dict[str, Any]]] = {
            "cosine": ("cosine", {}),
            "linear": ("poly", {"decay_rate": 1.0}),  # the power of the polynomial
            "step": ("step", {"decay_epochs": max(1.0, falling / 3), "decay_rate": 0.1}),
            "constant": ("step", {"decay_epochs": 1, "decay_rate": 1.0}),
        }
        name, extra = schedules[config.schedule]
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=name,
            num_epochs=falling,
            min_lr=config.min_lr,
            warmup_epochs=min(config.warmup_epochs, falling - 1),
            warmup_lr=config.lr / 100 if config.warmup_lr is None else config.warmup_lr,
            step_on_epochs=False,
            updates_per_epoch=math.ceil(len(self.loaders[0]) / config.accumulate),
            **extra,
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        # timm counts updates itself nowhere; Lightning's count includes the one just made.
        scheduler.step_update(num_updates=self.global_step)
