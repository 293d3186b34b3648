"""What is seen of a run while it goes on: a bar, and a line for each epoch."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from volution._support.console import Meter, log
from volution.train.history import History

__all__ = ["Progress", "Throughput", "peak_memory"]


class Throughput:
    """Images per second over the last half minute, pauses left out.

    Example:
        >>> moving = Throughput(seconds=10)
        >>> for second in range(5):
        ...     moving.add(32, at=float(second))
        >>> moving.rate
        32.0
        >>> moving.pause(100.0)
        >>> moving.add(32, at=105.0)
        >>> moving.rate
        32.0
    """

    def __init__(self, seconds: float = 30.0) -> None:
        self.seconds = seconds
        self._paused = 0.0
        self._seen: deque[tuple[float, int]] = deque()
        self._images = 0

    def add(self, images: int, at: float | None = None) -> None:
        """Count images; ``at`` is the time in seconds, now by default."""
        moment = (time.perf_counter() if at is None else at) - self._paused
        self._seen.append((moment, images))
        self._images += images
        while len(self._seen) > 2 and moment - self._seen[0][0] > self.seconds:
            self._images -= self._seen.popleft()[1]

    def pause(self, seconds: float) -> None:
        """Leave out time that was spent with something else."""
        self._paused += seconds

    @property
    def rate(self) -> float:
        """Images per second; 0 before the second batch."""
        if len(self._seen) < 2:
            return 0.0
        first, last = self._seen[0], self._seen[-1]
        # The first batch only marks the beginning: it was computed before that.
        return (self._images - first[1]) / max(last[0] - first[0], 1e-9)


class Progress(Callback):
    """Show one bar for the whole run, and a line per epoch; the first process of all shows.

    The time left counts all epochs that are to come, with their validation.

    Args:
        history: Where the numbers come from.
        batch_size: Images that go through the network at once, on all devices together.
    """

    def __init__(self, history: History, batch_size: int) -> None:
        self.history = history
        self.batch_size = batch_size
        self._meter: Meter | None = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self.epochs = int(trainer.max_epochs or 0)
        self._batches = int(trainer.num_training_batches)
        self.images_per_epoch = self._batches * self.batch_size
        self._done = trainer.current_epoch * self.images_per_epoch
        self._throughput = Throughput()
        self._validation = 0.0
        if self.history.rows:
            row = self.history.rows[-1]
            learning = self.images_per_epoch / max(row["images_per_second"], 1e-9)
            self._validation = max(0.0, row["seconds"] - learning)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        total = self.epochs * self.images_per_epoch
        self._meter = Meter("training", total, done=self._done).__enter__()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        if self._meter is None:
            return
        self._throughput.add(len(batch.labels) * trainer.world_size)
        epoch = trainer.current_epoch
        # By position, not by images that were readable: the bar has to reach its end.
        done = round((epoch + (index + 1) / self._batches) * self.images_per_epoch)
        rate = self._throughput.rate
        images = (self.epochs * self.images_per_epoch) - done
        left = images / rate + (self.epochs - epoch) * self._validation if rate else None
        self._meter.add(
            done - self._done,
            f"epoch {epoch + 1}/{self.epochs}",
            rate=rate,
            left=left,
            detail=self._detail(trainer, module, index),
        )
        self._done = done

    def _detail(self, trainer: Trainer, module: LightningModule, index: int) -> str:
        parts = [f"batch {index + 1:,}/{self._batches:,}"]
        if self.history.recent:
            parts.append(f"loss {self.history.recent['train_loss']:.3f}")
        parts.append(f"learning rate {self.history.lr:.2g}")
        memory = peak_memory(module.device)
        if memory is not None:
            parts.append(f"{memory / 2**30:.1f} GiB at most")
        return ", ".join(parts)

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self._meter is not None:
            self._validation = time.perf_counter() - self._paused
            self._throughput.pause(self._validation)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self._meter is None:
            return
        row = self.history.rows[-1]
        log.print(
            f"epoch {row['epoch']:3.0f}/{self.epochs}  "
            f"loss {row['train_loss']:.3f}  validation {row['val_loss']:.3f}, "
            f"[bold]top-1 {row['val_top1']:6.2%}[/]  "
            f"[dim]{row['seconds']:.1f} s, {row['images_per_second']:,.0f} images/s[/]"
        )

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, module: LightningModule, error: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._meter is not None:
            self._meter.__exit__(None, None, None)
            self._meter = None


def peak_memory(device: torch.device) -> int | None:
    """Return the most bytes that were in use at once; None where that is not known.

    Args:
        device: A GPU, of which this process's tensors count; or the CPU, of which all of this
            process counts.

    Example:
        >>> peak_memory(torch.device("cpu")) > 2**20
        True
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
