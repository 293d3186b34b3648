"""What a run keeps after each epoch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from volution.tasks import Classifier, save_classifier

__all__ = ["Checkpoints"]


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
