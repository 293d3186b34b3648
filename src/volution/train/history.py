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
from volution.train.rows import line, parse_rows, write_rows
from volution.train.runstate import hold

__all__ = ["History"]

STEPS = ("step", "epoch", "lr", "train_loss")
_ROWS_PER_EPOCH = 100
# Fetching a loss waits for the device, and must not be done often.
_SECONDS_BETWEEN_WRITES = 1.0


class History(Callback):
    """Keep one row of numbers for each epoch, and one for each hundredth of an epoch.

    Both are part of the saved state: a resumed run writes the files of an unbroken one, but for
    the times in them. The first process of all writes; losses are means over the images of all.

    Args:
        path: CSV file of a row for each epoch.
        steps: CSV file of the loss within epochs; locked as long as the run goes on.
        loggers: Further places for the same numbers.

    Attributes:
        rows: The epochs so far.
        recent: The last row within an epoch, once there is one.
        lr: Learning rate of the batch that is being learned.
    """

    def __init__(self, path: Path, steps: Path, loggers: Sequence[RunLogger] = ()) -> None:
        self.path = path
        self.steps = steps
        self.loggers = loggers
        self.rows: list[dict[str, float]] = []
        self.recent: dict[str, float] = {}
        self.lr = float("nan")
        self._resumed = False
        self._count = 0  # rows in steps.csv
        self._file: TextIO | None = None
        self._opened: list[RunLogger] = []
        # Sum of losses and number of images of this epoch, at its last row.
        self._before = torch.zeros(2, dtype=torch.float64)
        self._waiting: list[tuple[int, float, float, torch.Tensor]] = []
        self._start, self._carried, self._in_epoch = 0.0, 0.0, False
        self._learning, self._images = 0.0, 0.0

    # The start and the end

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._start = time.perf_counter() - self._carried
        if not trainer.is_global_zero:
            return
        self._file = self.steps.open("a+", encoding="utf-8", newline="")
        hold(self._file)
        written = self._shorten(self._file)
        self._written = time.perf_counter()
        for logger in self.loggers:
            logger.open(step=trainer.global_step if self._resumed else None, written=written)
            self._opened.append(logger)

    def _shorten(self, file: TextIO) -> int:
        """Leave the rows that belong to the restored state; return the last step there was."""
        file.seek(0)
        text = file.read()
        try:
            earlier = parse_rows(text)
        except ValueError:  # not ours to repair; the epochs are in the state
            earlier = []
        self._count = min(self._count, len(earlier))
        lines = text.splitlines(keepends=True)[: self._count + 1] if self._count else []
        file.truncate(sum(len(line.encode()) for line in lines))
        if not lines:
            file.write(line(STEPS))
        file.flush()
        return int(earlier[-1]["step"]) if earlier else 0

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

    def release(self) -> None:
        """Let go of the run's folder, when the last state is written too."""
        if self._file is not None:
            self._file.close()
            self._file = None

    # Within an epoch

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        if not self._in_epoch:  # after a resumption it may have begun before
            self._start = time.perf_counter()

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, index: int
    ) -> None:
        self._in_epoch = True
        # Now, not after the step: the schedule is then a step ahead.
        group = trainer.optimizers[0].param_groups[0]
        # With layer decay the first group is that of the first layers, slowed down most.
        self.lr = group["lr"] / group.get("lr_scale", 1.0)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        if self._file is None:
            return
        batches = int(trainer.num_training_batches)
        if (index + 1) % math.ceil(batches / _ROWS_PER_EPOCH) and index + 1 < batches:
            return
        sums = _learned(module).clone()
        epoch = round(trainer.current_epoch + (index + 1) / batches, 6)
        # Only now: the module's sums go to the device after callbacks have started.
        since = sums - self._before.to(sums)
        self._waiting.append((trainer.global_step, epoch, self.lr, since))
        self._before = sums
        if time.perf_counter() - self._written > _SECONDS_BETWEEN_WRITES:
            self._flush()

    def _flush(self) -> None:
        """Fetch the losses that wait on the device, and write their rows."""
        if self._file is None or not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        for step, epoch, lr, sums in waiting:
            total, images = sums.tolist()
            if images == 0:  # nothing was readable
                continue
            row = dict(zip(STEPS, (step, epoch, lr, total / images), strict=True))
            self._file.write(line([step, epoch, lr, row["train_loss"]]))
            self._count += 1
            self.recent = row
            self._tell(step, {"step/lr": lr, "step/train_loss": row["train_loss"]})
        self._file.flush()
        self._written = time.perf_counter()

    def _tell(self, step: int, values: Mapping[str, float]) -> None:
        for logger in self._opened:
            logger.write(step, values)

    # After an epoch

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._learning = time.perf_counter() - self._start
        self._images = float(_learned(module)[1])

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        row = {
            "epoch": trainer.current_epoch + 1,
            "lr": self.lr,
            **{n: metrics.get(n, float("nan")) for n in ("train_loss", "val_loss")},
            **{n: metrics.get(n, float("nan")) for n in ("val_top1", "val_top5")},
            "seconds": round(time.perf_counter() - self._start, 3),
            "images_per_second": round(self._images / max(self._learning, 1e-9), 1),
        }
        self.rows.append(row)
        self._in_epoch = False
        self._before.zero_()
        if self._file is None:
            return
        self._flush()
        write_rows(self.path, self.rows)
        named = {f"epoch/{name}": value for name, value in row.items() if name != "epoch"}
        self._tell(trainer.global_step, named)

    # Part of the saved state

    def state_dict(self) -> dict[str, Any]:
        self._flush()
        if self._file is not None:
            os.fsync(self._file.fileno())
        for logger in self._opened:
            logger.flush()
        return {
            "rows": [dict(row) for row in self.rows],
            "step_rows": self._count,
            "before": self._before.tolist(),
            "in_epoch": self._in_epoch,
            "seconds": time.perf_counter() - self._start if self._in_epoch else 0.0,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = True
        self.rows = [dict(row) for row in state_dict["rows"]]
        self._count = state_dict["step_rows"]
        self._before = torch.tensor(state_dict["before"], dtype=torch.float64)
        self._in_epoch = state_dict["in_epoch"]
        self._carried = state_dict["seconds"]


def _learned(module: LightningModule) -> torch.Tensor:
    """Return the sum of the losses in this epoch, and of how many images they are."""
    learned: torch.Tensor = module.learned  # type: ignore[assignment]
    return learned
