"""The classification task as Lightning sees it: steps, optimiser, schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from volution.data import Batch, set_position
from volution.tasks import Accuracy
from volution.train import optimisation
from volution.train.config import TrainConfig
from volution.train.distillation import Teacher
from volution.train.freezing import frozen_modules
from volution.train.objective import Objective

__all__ = ["ClassificationModule"]


class ClassificationModule(LightningModule):
    """Train a classifier as a configuration says.

    Args:
        model: The network.
        config: The run's settings.
        num_classes: Classes to tell apart.
        make_loaders: Returns the batches to learn from and those to measure with, of a rank and a
            number of ranks.
        teacher: What the network learns from besides the labels.

    Attributes:
        average: The moving average of the weights, if there is one.
        judged: What is measured and kept: the average where there is one, or the network.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        num_classes: int,
        make_loaders: Callable[[int, int], tuple[DataLoader[Batch], DataLoader[Batch]]],
        teacher: Teacher | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.num_classes = num_classes
        self.make_loaders = make_loaders
        # Which rank this is shows only when the processes have found each other; how many batches
        # there are, and whether there are enough, is the same on all.
        self.loaders = make_loaders(0, config.ranks)
        self.accuracy = Accuracy(num_classes)
        self.broken: dict[str, None] = {}  # a set that keeps its order
        self.average: ModelEmaV3 | None = None
        if config.ema_decay is not None:
            self.average = ModelEmaV3(model, decay=config.ema_decay)
            self.average.requires_grad_(False)
        self.objective = Objective(config, num_classes, teacher)
        self.train()

    @property
    def judged(self) -> nn.Module:
        return self.model if self.average is None else self.average.module

    def train(self, mode: bool = True) -> ClassificationModule:
        super().train(mode)
        for part in frozen_modules(self.model):
            part.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        model = self.model if self.training else self.judged
        # The compiled kernels and oneDNN both work best on channels-last.
        logits: Tensor = model(images.to(memory_format=torch.channels_last))
        return logits

    def train_dataloader(self) -> DataLoader[Batch]:
        self.loaders = self.make_loaders(self.trainer.global_rank, self.trainer.world_size)
        # A resumed run asks for its first batch before Lightning tells the sampler the epoch.
        epoch = self.trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
        set_position(self.loaders[0], epoch)
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
        loss = self.objective(self, batch.images, batch.labels)
        if not torch.isfinite(loss):
            raise ValueError(
                f"the loss is {loss.item()} in epoch {self.current_epoch + 1}; lower the learning "
                f"rate (lr={self.config.scaled_lr}) or warm up longer"
            )
        self.log("train_loss", loss, on_epoch=True, on_step=False, batch_size=len(batch.labels))
        return loss

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
        steps = math.ceil(len(self.loaders[0]) / self.config.accumulate)
        optimizer = optimisation.optimizer(self.config, self.model)
        scheduler = optimisation.scheduler(self.config, optimizer, steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        # timm counts updates itself nowhere; Lightning's count includes the one just made.
        scheduler.step_update(num_updates=self.global_step)
