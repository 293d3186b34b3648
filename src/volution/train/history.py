"""The numbers of a run: one row for each epoch, and the loss within epochs."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from volution.train.loggers import RunLogger
from volution.train.rows import line, read_rows, write_rows
from volution.train.runstate import hold

__all__ = ["History"]

STEPS = ("step", "epoch", "lr", "train_loss")
_ROWS_PER_EPOCH = 100
# Fetching a loss waits for the device, and must not be done often.
_SECONDS_BETWEEN_WRITES = 1.0


class History(Callback):
    """Keep one row of numbers for each epoch, and one for each hundredth of an epoch.

    Both are part of the checkpoint: a resumed run writes the files of an unbroken one, but for the
    times in them. The first process of all writes; the loss is the mean over all of them.

    Args:
        path: CSV file of a row for each epoch.
        steps: CSV file of the loss within epochs.
        loggers: Further places for the same numbers.

    Attributes:
        rows: The epochs so far.
        recent: The last row within an epoch, once there is one.
    """

    def __init__(self, path: Path, steps: Path, loggers: Sequence[RunLogger] = ()) -> None:
        self.path = path
        self.steps = steps
        self.loggers = loggers
        self.rows: list[dict[str, float]] = []
        self.recent: dict[str, float] = {}
        self._kept: int | None = None  # rows of steps.csv before a resumption
        self._seconds, self._images = 0.0, 0
        self._file: TextIO | None = None
        self._opened: list[RunLogger] = []
        self._count = 0
        # Sum of the losses since the last row, and how many images they are of.
        self._sums: torch.Tensor | None = None
        self._waiting: list[tuple[int, float, float, torch.Tensor]] = []

    # The start and the end

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._start = time.perf_counter() - self._seconds
        self._train_seconds = 0.0
        sums = torch.zeros(2, dtype=torch.float64 if module.device.type == "cpu" else torch.float32)
        self._sums = (sums if self._sums is None else self._sums.to(sums)).to(module.device)
        if not trainer.is_global_zero:
            return
        self._file = self.steps.open("a")
        hold(self._file)
        earlier = read_rows(self.steps)
        self._count = min(len(earlier), self._kept or 0)
        _shorten(self.steps, self._file, self._count)
        self._written = time.perf_counter()
        written = int(earlier[-1]["step"]) if earlier else 0
        for logger in self.loggers:
            logger.open(
                step=None if self._kept is None else trainer.global_step,
                written=0 if self._kept is None else written,
            )
            self._opened.append(logger)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._close(failed=False)

    def on_exception(self, trainer: Trainer, module: LightningModule, error: BaseException) -> None:
        self._close(failed=True)

    def _close(self, *, failed: bool) -> None:
        try:
            self._flush()
        finally:
            while self._opened:
                self._opened.pop().close(failed=failed)
            if self._file is not None:
                self._file.close()
                self._file = None

    # Within an epoch

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        if self._images == 0:  # not in the middle, after a resumption
            self._start = time.perf_counter()

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, index: int
    ) -> None:
        # Now, not after the step: the schedule is then a step ahead.
        group = trainer.optimizers[0].param_groups[0]
        # With layer decay the first group is that of the first layers, slowed down most.
        self.lr = group["lr"] / group.get("lr_scale", 1.0)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        images = len(batch.labels)
        self._images += images * trainer.world_size
        assert self._sums is not None
        if images and outputs is not None and outputs.get("loss") is not None:
            # Lightning's is the share of the batch in a step of several.
            loss = outputs["loss"].detach().to(self._sums.dtype) * trainer.accumulate_grad_batches
            self._sums += torch.stack([loss * images, torch.full_like(loss, images)])
        batches = int(trainer.num_training_batches)
        every = math.ceil(batches / _ROWS_PER_EPOCH)
        if (index + 1) % every and index + 1 < batches:
            return
        sums = trainer.strategy.reduce(self._sums.clone(), reduce_op="sum")
        self._sums.zero_()
        if self._file is None:
            return
        epoch = trainer.current_epoch + (index + 1) / batches
        self._waiting.append((trainer.global_step, round(epoch, 6), self.lr, sums))
        if time.perf_counter() - self._written > _SECONDS_BETWEEN_WRITES:
            self._flush()

    def _flush(self) -> None:
        """Fetch the losses that wait on the device, and write their rows."""
        if self._file is None or not self._waiting:
            return
        for step, epoch, lr, sums in self._waiting:
            total, images = sums.tolist()
            if images == 0:  # nothing was readable
                continue
            row = dict(zip(STEPS, (step, epoch, lr, total / images), strict=True))
            self._file.write(_step_line(row))
            self._count += 1
            self.recent = row
            for logger in self._opened:
                logger.write(step, {"step/lr": lr, "step/train_loss": row["train_loss"]})
        self._waiting.clear()
        self._file.flush()
        self._written = time.perf_counter()

    # After an epoch

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._train_seconds = time.perf_counter() - self._start

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        seconds = time.perf_counter() - self._start
        rate = self._images / max(self._train_seconds or seconds, 1e-9)
        row = {
            "epoch": trainer.current_epoch + 1,
            "lr": self.lr,
            **{n: metrics.get(n, float("nan")) for n in ("train_loss", "val_loss")},
            **{n: metrics.get(n, float("nan")) for n in ("val_top1", "val_top5")},
            "seconds": round(seconds, 3),
            "images_per_second": round(rate, 1),
        }
        self.rows.append(row)
        self._start, self._images = time.perf_counter(), 0
        if self._file is None:
            return
        self._flush()
        write_rows(self.path, self.rows)
        for logger in self._opened:
            named = {f"epoch/{name}": value for name, value in row.items() if name != "epoch"}
            logger.write(trainer.global_step, named)

    # Part of the checkpoint

    def state_dict(self) -> dict[str, Any]:
        self._flush()
        if self._file is not None:
            os.fsync(self._file.fileno())
        return {
            "rows": [dict(row) for row in self.rows],
            "step_rows": self._count,
            "images": self._images,
            "seconds": time.perf_counter() - self._start if self._images else 0.0,
            "sums": [0.0, 0.0] if self._sums is None else self._sums.tolist(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = [dict(row) for row in state_dict["rows"]]
        self._kept = state_dict["step_rows"]
        self._images, self._seconds = state_dict["images"], state_dict["seconds"]
        self._sums = torch.tensor(state_dict["sums"], dtype=torch.float64)


def _shorten(path: Path, file: TextIO, rows: int) -> None:
    """Leave the first rows of a file that is open for appending."""
    lines = path.read_bytes().splitlines(keepends=True)[: rows + 1]
    if rows == 0:
        lines = []
    file.truncate(sum(map(len, lines)))
    if not lines:
        file.write(line(STEPS))
    file.flush()


def _step_line(row: Mapping[str, float]) -> str:
    return line([int(row["step"]), *(row[name] for name in STEPS[1:])])
