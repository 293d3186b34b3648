"""The classification task as Lightning sees it: steps, optimiser, schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from volution.data import Batch, set_position
from volution.tasks import Accuracy
from volution.train import optimisation
from volution.train.average import MovingAverage
from volution.train.chance import seed_step
from volution.train.config import TrainConfig
from volution.train.distillation import Teacher
from volution.train.freezing import frozen_modules
from volution.train.interruption import keep_reading
from volution.train.objective import Objective
from volution.train.sharding import shard
from volution.train.together import filled, processes, summed, take_from_first, union
from volution.train.trouble import TrainingError

__all__ = ["ClassificationModule"]

_STEPS_BETWEEN_CHECKS = 20


class ClassificationModule(LightningModule):
    """Train a classifier as a configuration says.

    Args:
        model: The network.
        config: The run's settings.
        num_classes: Classes to tell apart.
        make_loaders: Returns the batches to learn from and those to measure with, of a rank and a
            number of ranks.
        teacher: What the network learns from besides the labels.
        image_shape: Channels, height and width of the images.

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
        image_shape: tuple[int, int, int] = (3, 224, 224),
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.num_classes = num_classes
        self.make_loaders = make_loaders
        self.image_shape = image_shape
        # Which rank this is shows only when the processes have found each other; how many batches
        # there are, and whether there are enough, is the same on all.
        self.loaders = make_loaders(0, config.ranks)
        self.accuracy = Accuracy(num_classes)
        self.broken: dict[str, None] = {}  # a set that keeps its order
        self.epoch, self.batches_done = 0, 0
        # Sums of losses, and images: learned by all in this epoch, measured by this process.
        self.learned = torch.zeros(2, dtype=torch.float64)
        self.measured = torch.zeros(2, dtype=torch.float64)
        self.average: MovingAverage | None = None
        if config.ema_decay is not None:
            self.average = MovingAverage(model, decay=config.ema_decay)
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

    def configure_model(self) -> None:
        networks = [self.model] if self.average is None else [self.model, self.average.module]
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            for net in networks:
                shard(net, self.trainer.strategy.device_mesh["data_parallel"])
        if self.config.compile:
            for net in networks:
                net.compile()

    def train_dataloader(self) -> DataLoader[Batch]:
        self.loaders = self.make_loaders(self.trainer.global_rank, self.trainer.world_size)
        for loader in self.loaders:
            loader.worker_init_fn = keep_reading
        # A resumed run asks for its first batch before Lightning starts the epoch.
        set_position(self.loaders[0], self.epoch, self.batches_done)
        return self.loaders[0]

    def val_dataloader(self) -> DataLoader[Batch]:
        return self.loaders[1]

    def on_train_start(self) -> None:
        # Apple's GPUs have no float64.
        exact = torch.float32 if self.device.type == "mps" else torch.float64
        self.learned = self.learned.to(self.device, exact)
        self.measured = self.measured.to(self.device, exact)
        if self.average is not None:
            self.average.settle(self.model)

    def on_train_epoch_start(self) -> None:
        if self.epoch != self.current_epoch:
            self.epoch, self.batches_done = self.current_epoch, 0
            set_position(self.loaders[0], self.epoch)

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        seed_step(self.config.seed, self.epoch, index, self.global_rank, self.device)

    def training_step(self, batch: Batch, index: int) -> Tensor | None:
        self.batches_done = index + 1
        self.broken.update(dict.fromkeys(batch.broken))
        if len(batch.labels) < 2 and processes() == 1:  # too few for batch statistics
            return None
        readable = len(batch.labels)
        batch = filled(batch, self.image_shape)
        loss = self.objective(self, batch.images, batch.labels)
        here = torch.stack([loss.detach().to(self.learned.dtype), self.learned.new_ones(())])
        step = summed(here * readable)
        self.learned += step
        # Fetching a number from a GPU waits for it.
        if self.device.type == "cpu" or index % _STEPS_BETWEEN_CHECKS == 0:
            self._check_loss(index)
        loss = loss * self._of_step(index)
        if processes() == 1:
            return loss
        # Gradients are averaged over processes; this makes of it the average over images.
        return loss * (readable * processes() / step[1].clamp(min=1)).to(loss.dtype)

    def _of_step(self, index: int) -> float:
        """Return what makes the mean over an epoch's last batches of what Lightning divides.

        It divides by ``accumulate`` also where fewer batches are left for the last step.
        """
        batches, accumulate = len(self.loaders[0]), self.config.accumulate
        left = batches % accumulate
        return accumulate / left if index >= batches - left else 1.0

    def _check_loss(self, index: int) -> None:
        """Raise if a loss of this epoch was no number; the same on all processes."""
        total = float(self.learned[0])
        if math.isfinite(total):
            return
        lr = self.trainer.optimizers[0].param_groups[0]["lr"]
        raise TrainingError(
            f"the loss is {total} in epoch {self.epoch + 1}, batch {index + 1}, at learning rate "
            f"{lr:.3g}; lower the learning rate (lr={self.config.scaled_lr}), warm up longer or "
            f"clip the gradients (clip_grad)"
        )

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            self.average.update(self.model)

    def on_validation_epoch_start(self) -> None:
        # Every loss of the epoch counts before anything is measured and kept.
        self._check_loss(self.batches_done - 1)
        # Otherwise DDP does so before each pass.
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            take_from_first(self.buffers())
        self.accuracy = Accuracy(self.num_classes)
        self.measured.zero_()

    def validation_step(self, batch: Batch, index: int) -> None:
        self.broken.update(dict.fromkeys(batch.broken))
        images = len(batch.labels)
        if images == 0 and processes() == 1:
            return
        # A network that is shared out needs all processes for each pass.
        logits = self(batch.images if images else filled(batch, self.image_shape).images)[:images]
        # Half precision has too few digits for sums over images.
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = cross_entropy(logits, batch.labels, reduction="sum")
        self.measured += torch.stack([loss, loss.new_tensor(images)]).to(self.measured.dtype)
        self.accuracy.update(logits, batch.labels)

    def on_validation_epoch_end(self) -> None:
        # Here, and not with each batch: Lightning keeps no sums of a part of an epoch.
        self.log("train_loss", self.learned[0] / self.learned[1])
        self.learned.zero_()
        measured = summed(self.measured)
        self.log("val_loss", measured[0] / measured[1])
        self.accuracy.combine(partial(summed, device=self.device))
        self.log("val_top1", self.accuracy.top1)
        self.log("val_top5", self.accuracy.top5)
        self.broken = union(self.broken)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._check_loss(self.batches_done - 1)
        whole = self.batches_done == len(self.loaders[0])
        checkpoint["position"] = {
            "epoch": self.epoch + whole,
            "batch": 0 if whole else self.batches_done,
        }
        checkpoint["learned"] = self.learned.tolist()
        checkpoint["broken"] = list(self.broken)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        position = checkpoint["position"]
        self.epoch, self.batches_done = position["epoch"], position["batch"]
        self.learned.copy_(torch.tensor(checkpoint["learned"], dtype=self.learned.dtype))
        self.broken = dict.fromkeys(checkpoint["broken"])

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
