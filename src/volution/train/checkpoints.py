"""When a run's state is saved, and when it stops after that."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from volution.train.config import TrainConfig
from volution.train.interruption import Interruption, Stop
from volution.train.saving import BackgroundIO
from volution.train.store import Best, State
from volution.train.trouble import TrainingError

__all__ = ["Checkpoints"]

# Steps after which several processes ask each other whether to save or to stop. A message each
# step would cost more than the seconds that a signal then waits.
_STEPS_BETWEEN_QUESTIONS = 10
# Seconds of training that a long validation may put at risk.
_BEFORE_VALIDATION = 60.0
# Seconds of validation that are still waited for when the run is asked to stop.
_PATIENCE = 10.0


class Checkpoints(Callback):
    """Save the state after each epoch, and within it by time, by steps, and when asked to stop.

    Within an epoch only between two steps of the optimizer, and not after its last batch: what
    belongs to the epoch is then saved with its validation. Before a validation, which may be long,
    the state before the epoch's last step is saved if it is newer by a minute than the one before.

    Args:
        io: Writes the states.
        config: The run's settings.
        interruption: Knows whether the run was asked to stop.
        start: The state that the run continues from.
    """

    def __init__(
        self,
        io: BackgroundIO,
        config: TrainConfig,
        interruption: Interruption,
        start: State | None = None,
    ) -> None:
        self.io = io
        self.config = config
        self.interruption = interruption
        self.start = start
        self.best_top1 = -1.0
        self._saved_step = -1
        self._saved_time = time.monotonic()
        self._validation_began = self._saved_time

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        mine = None if self.start is None else self.start.sha256
        first = trainer.strategy.broadcast(mine)
        if mine != first:
            raise TrainingError(
                f"process {trainer.global_rank} finds another state to continue from than process "
                f"0: the run's folder must be one that all machines share"
            )
        self.io.parameters = [name for name, _ in module.named_parameters()]
        self.io.parameters = [n for n in self.io.parameters if not n.startswith("average.")]

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        # Lightning has taken the signals meanwhile.
        self.interruption.take()
        if self.start is None:
            return
        self._saved_step = trainer.global_step
        if trainer.is_global_zero:
            self.io.restore_best(self.start.best)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        done = index + 1
        if done % self.config.accumulate or done == trainer.num_training_batches:
            return
        step = trainer.global_step
        left = int(trainer.num_training_batches) - done
        save, signum = self._wishes(trainer, step, last=left <= self.config.accumulate)
        if signum:
            if self._saved_step != step:
                self._save(trainer, module)
            self._finish(trainer)
            raise Stop(signum)
        if save:
            self._save(trainer, module)

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._validation_began = time.monotonic()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        done = batch_idx + 1
        if trainer.world_size > 1 and done % _STEPS_BETWEEN_QUESTIONS:
            return
        each = (time.monotonic() - self._validation_began) / done
        left = each * (sum(map(int, trainer.num_val_batches)) - done)
        # Who asked to stop may not wait for long; the state before the last step is saved.
        _, signum = self._agreed(trainer, False, heed=left > _PATIENCE)
        if signum:
            self._finish(trainer)
            raise Stop(signum)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        top1 = float(trainer.callback_metrics.get("val_top1", float("nan")))
        epoch = trainer.current_epoch + 1
        if top1 > self.best_top1:
            self.best_top1 = top1
            self.io.best = Best(f"best{epoch:05d}.safetensors", epoch, top1)
        self._save(trainer, module)
        _, signum = self._agreed(trainer, False)
        if signum and epoch < self.config.epochs:
            self._finish(trainer)
            raise Stop(signum)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._finish(trainer)

    def on_exception(self, trainer: Trainer, module: LightningModule, error: BaseException) -> None:
        # What is half written is worth waiting for, unless somebody is impatient.
        self.io.settle(cancel=isinstance(error, KeyboardInterrupt))

    def state_dict(self) -> dict[str, Any]:
        return {"best_top1": self.best_top1}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_top1 = state_dict["best_top1"]

    def _wishes(self, trainer: Trainer, step: int, *, last: bool) -> tuple[bool, int]:
        """Return whether to save now, and the signal to stop after; the same on all processes."""
        every = self.config.save_steps
        by_steps = every is not None and step % every == 0
        if trainer.world_size > 1 and step % _STEPS_BETWEEN_QUESTIONS and not last:
            return by_steps, 0
        # The validation that follows the last may be long, and saves nothing.
        limit = min(_BEFORE_VALIDATION, self.config.save_minutes * 60)
        limit = limit if last else self.config.save_minutes * 60
        due = time.monotonic() - self._saved_time >= limit and not self.io.busy
        by_time, signum = self._agreed(trainer, due and trainer.is_global_zero)
        return by_steps or by_time, signum

    def _agreed(self, trainer: Trainer, save: bool, *, heed: bool = True) -> tuple[bool, int]:
        """Return what any process wishes; raises if a write has failed in one.

        Args:
            trainer: Knows the processes.
            save: Whether this one wishes to save.
            heed: Whether to ask for signals.
        """
        failed = self.io.failed
        signum = (self.interruption.received or 0) if heed else 0
        if trainer.world_size > 1:
            mine = torch.tensor([save, signum, failed], device=trainer.strategy.root_device)
            any_ = trainer.strategy.reduce(mine, reduce_op="max")
            save, signum, failed = bool(any_[0]), int(any_[1]), bool(any_[2])
        if failed:
            self.io.wait()
            raise TrainingError("process 0 could not save the state")
        return save, signum

    def _save(self, trainer: Trainer, module: LightningModule) -> None:
        trainer.save_checkpoint(self.io.store.folder / "state")
        self._saved_step = trainer.global_step
        self._saved_time = time.monotonic()

    def _finish(self, trainer: Trainer) -> None:
        """Wait until the last state is on the disk; all processes go on only then."""
        self.io.wait()
        trainer.strategy.barrier("checkpoints")
