"""Putting a run together from its settings and handing it to Lightning."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer

from volution import tasks
from volution._support.console import log
from volution.train import building, loggers, parallel
from volution.train import folder as run_folder
from volution.train.checkpoints import Checkpoints
from volution.train.config import TrainConfig
from volution.train.distillation import make_teacher
from volution.train.fit import TrainResult
from volution.train.history import History
from volution.train.interruption import Interruption, stopping
from volution.train.launching import others
from volution.train.module import ClassificationModule
from volution.train.progress import Progress
from volution.train.ranks import is_first
from volution.train.saving import BackgroundIO
from volution.train.store import Best, Store
from volution.train.trouble import explained

__all__ = ["Run"]

# Harmless, and nothing a user could act on.
_KNOWN_WARNINGS = (
    # The number of reading processes is the user's choice; 0 is right for small data.
    r".*does not have many workers.*",
    # device="cpu" was asked for.
    r".*GPU available but not used.*",
    # Inside Lightning, with torch 2.10 and newer.
    r".*isinstance\(treespec, LeafSpec\).*",
    # Batches of unreadable images are skipped, and reported at the end.
    r".*`training_step` returned `None`.*",
    # The loader is told its position.
    r"You're resuming from a checkpoint that ended before the epoch ended.*",
    # What is logged are totals already, the same on all processes.
    r".*It is recommended to use `self.log\(.*sync_dist=True\)`.*",
    # A dimension of one element has no stride that would matter; others cost DDP a copy.
    r"Grad strides do not match bucket view strides.*",
    # The averaged weights are never trained.
    r"Found \d+ module\(s\) in eval mode at the start of training.*",
)


@dataclass
class Run:
    """A run that is ready to start."""

    config: TrainConfig
    classifier: tasks.Classifier
    module: ClassificationModule

    @classmethod
    def build(cls, config: TrainConfig, *, show_progress: bool = True) -> Run:
        """Read the data's list and make the network; nothing is written."""
        loggers.check_installed(config)
        images = building.images(config, show_progress=show_progress)
        torch.manual_seed(config.seed)
        net = building.network(config, images)
        inputs = building.input_config(config, net, images)
        loaders = partial(building.loaders, config, images, inputs)
        teacher = make_teacher(config, images.classes, inputs)
        shape = (inputs.channels, inputs.image_size, inputs.image_size)
        return cls(
            config,
            tasks.Classifier(net, config.model, images.classes, inputs, config.model_args),
            ClassificationModule(net, config, len(images.classes), loaders, teacher, shape),
        )

    def fit(
        self,
        folder: Path,
        *,
        resume: Path | None = None,
        show_progress: bool = True,
        callbacks: Sequence[Callback] = (),
    ) -> TrainResult:
        """Train until the last epoch, from the first or from a saved state."""
        history = History(
            folder / run_folder.METRICS,
            folder / run_folder.STEPS,
            loggers.run_loggers(self.config, folder),
        )
        io = self._io(folder)
        interruption = Interruption(told=show_progress and is_first())
        keep = Checkpoints(io, self.config, interruption, start=io.store.find(resume))
        own: list[Callback] = [history, keep]
        if show_progress and is_first():
            own.append(Progress(history, self.config.batch_size))
        place = parallel.place(self.config)
        with (
            _quiet(),
            explained(self.config, folder),
            interruption,
            stopping(interruption),
            others(self.config, folder, resume),
        ):
            trainer = Trainer(
                **{**place, "plugins": [*place["plugins"], io]},
                max_epochs=self.config.epochs,
                accumulate_grad_batches=self.config.accumulate,
                gradient_clip_val=self.config.clip_grad,
                default_root_dir=folder,
                callbacks=[*own, *callbacks],
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
            )
            if show_progress and is_first() and self.config.lr_scaling != "none":
                log.print(self.config.lr_rule, soft_wrap=True)
            try:
                trainer.fit(self.module, ckpt_path=resume, weights_only=True)
            finally:
                history.release()
        return TrainResult(folder, keep.best_top1, history.rows, list(self.module.broken))

    def _io(self, folder: Path) -> BackgroundIO:
        store = Store(folder / run_folder.CHECKPOINTS, keep=self.config.keep)
        prefix = "model." if self.module.average is None else "average.module."

        def write_best(path: Path, weights: dict[str, torch.Tensor], best: Best) -> None:
            tasks.save_classifier(
                path, self.classifier, weights=weights, epoch=best.epoch, val_top1=best.top1
            )

        return BackgroundIO(store, folder / run_folder.BEST, prefix, write_best)


def finished(start: run_folder.Start) -> TrainResult:
    """Return what came of a run that is at its end."""
    assert start.state is not None
    # Mapped, not read: the weights stay where they are.
    state = torch.load(start.state, map_location="cpu", weights_only=True, mmap=True)
    callbacks = state["callbacks"]
    return TrainResult(
        start.folder,
        callbacks[Checkpoints.__qualname__]["best_top1"],
        callbacks[History.__qualname__]["rows"],
        state["broken"],
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's remarks and known warnings off the terminal; others get through."""
    loggers = [logging.getLogger(n) for n in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in _KNOWN_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
