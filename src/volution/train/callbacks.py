"""What a run does after each epoch: show, write down, keep."""

from __future__ import annotations

import csv
import os
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from volution._support.console import Meter, log
from volution.tasks import Classifier, save_classifier

__all__ = ["Checkpoints", "History", "Progress"]


class History(Callback):
    """Keep one row of numbers for each epoch, in memory and in a CSV file.

    The rows are part of the checkpoint, so a resumed run writes the file of an unbroken one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._start, self._images = time.perf_counter(), 0

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, index: int
    ) -> None:
        # Now, not after the epoch: the schedule is then a step ahead.
        group = trainer.optimizers[0].param_groups[0]
        # With layer decay the first group is that of the first layers, slowed down most.
        self._lr = group["lr"] / group.get("lr_scale", 1.0)
        self._images += len(batch.labels)

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._train_seconds = time.perf_counter() - self._start

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.rows.append(
            {
                "epoch": trainer.current_epoch + 1,
                "lr": self._lr,
                **{n: metrics.get(n, float("nan")) for n in ("train_loss", "val_loss")},
                **{n: metrics.get(n, float("nan")) for n in ("val_top1", "val_top5")},
                "seconds": round(time.perf_counter() - self._start, 3),
                "images_per_second": round(self._images / self._train_seconds, 1),
            }
        )
        with self.path.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]


class Checkpoints(Callback):
    """Keep the state after the last epoch, and the weights after the best.

    Args:
        last: File to continue from.
        best: File with the weights of the highest validation accuracy.
        classifier: The network in training, and what to write beside its weights.
    """

    def __init__(self, last: Path, best: Path, classifier: Classifier) -> None:
        self.last = last
        self.best = best
        self.classifier = classifier
        self.best_top1 = -1.0

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        top1 = float(trainer.callback_metrics.get("val_top1", float("nan")))
        if top1 > self.best_top1:
            self.best_top1 = top1
            epoch = trainer.current_epoch + 1
            save_classifier(self.best, self.classifier, epoch=epoch, val_top1=top1)
        # Whole or not at all: an interruption must not cost the state before it.
        unfinished = self.last.with_name(f".{self.last.name}.unfinished")
        trainer.save_checkpoint(unfinished)
        os.replace(unfinished, self.last)

    def state_dict(self) -> dict[str, Any]:
        return {"best_top1": self.best_top1}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_top1 = state_dict["best_top1"]


class Progress(Callback):
    """Show one bar for the whole run, with throughput and time left, and a line per epoch."""

    def __init__(self, history: History, images_per_epoch: int) -> None:
        self.history = history
        self.images_per_epoch = images_per_epoch

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.epochs = int(trainer.max_epochs or 0)
        left = self.epochs - trainer.current_epoch
        self.meter = Meter("training", left * self.images_per_epoch).__enter__()

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._start, self._images = time.perf_counter(), 0

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        self._images += len(batch.labels)
        rate = self._images / (time.perf_counter() - self._start)
        note = f"epoch {trainer.current_epoch + 1}/{self.epochs}"
        self.meter.add(len(batch.labels), note, rate=rate)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        row = self.history.rows[-1]
        log.print(
            f"epoch {row['epoch']:3.0f}/{self.epochs}  "
            f"loss {row['train_loss']:.3f}  validation {row['val_loss']:.3f}, "
            f"[bold]top-1 {row['val_top1']:6.2%}[/]  [dim]{row['seconds']:.1f} s[/]"
        )

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.meter.__exit__(None, None, None)

    def on_exception(self, trainer: Trainer, module: LightningModule, error: BaseException) -> None:
        if hasattr(self, "meter"):
            self.meter.__exit__(None, None, None)
