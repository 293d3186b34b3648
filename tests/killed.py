"""Runs that end badly on purpose; started by name in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from volution import train
from volution.cli import main
from volution.train import checkpoints
from volution.train.config import read_config


class DieAt(Callback):
    """Be killed a while after a batch has begun, wherever the run then is."""

    def __init__(self, batch: int, delay: float) -> None:
        self.left = batch
        self.delay = delay

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        if self.left == 0:
            threading.Thread(target=self._kill, daemon=True).start()
        self.left -= 1

    def _kill(self) -> None:
        time.sleep(self.delay)
        os.kill(os.getpid(), signal.SIGKILL)


class Mark(Callback):
    """Leave a file after a number of batches, for those who wait for it, and slow down."""

    def __init__(self, file: str, batch: int, pause: float) -> None:
        self.file = Path(file)
        self.left = batch
        self.pause = pause

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int
    ) -> None:
        self.left -= 1
        if self.left == 0:
            self.file.touch()
        if self.left <= 0:
            time.sleep(self.pause)


def run(config: str, die_at: int | None = None, delay: float = 0.0) -> None:
    """Train by a file of settings; continue what is there."""
    callbacks = [] if die_at is None else [DieAt(die_at, delay)]
    train.fit(read_config(Path(config)), show_progress=False, callbacks=callbacks)


class LongValidation(Mark):
    """Leave a file in the second validation, which is taken for a long one."""

    def __init__(self, file: str) -> None:
        super().__init__(file, 0, 0.2)
        checkpoints._PATIENCE = checkpoints._BEFORE_VALIDATION = 0.0

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int
    ) -> None:
        pass

    def on_validation_start(self, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == 1:
            self.file.touch()
            time.sleep(1.0)


class LoseWorker(Callback):
    """Kill a process that reads images."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        if trainer.current_epoch == 1:
            for process in multiprocessing.active_children():
                os.kill(process.pid or 0, signal.SIGKILL)


class FillDisk(Callback):
    """Let no file grow any more after the first epoch."""

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == 1:
            for thread in threading.enumerate():
                if thread.name == "saving":
                    thread.join()
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 15, 1 << 15))


CALLBACKS = {kind.__name__: kind for kind in (Mark, LongValidation, LoseWorker, FillDisk)}


def command(words: list[str], callback: str, *args: Any) -> int:
    """What ``volution`` does with the words after it, with a callback in the run."""
    used = [CALLBACKS[callback](*args)]
    train.fit, train.resume = (partial(f, callbacks=used) for f in (train.fit, train.resume))
    return main(words)
