"""Putting a run together from its settings and handing it to Lightning."""

from __future__ import annotations

import logging
import pickle
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer

from volution import data, tasks
from volution.train import building, loggers, parallel
from volution.train import folder as run_folder
from volution.train.callbacks import Checkpoints
from volution.train.config import TrainConfig
from volution.train.distillation import make_teacher
from volution.train.fit import TrainResult
from volution.train.history import History
from volution.train.launching import others
from volution.train.module import ClassificationModule
from volution.train.progress import Progress
from volution.train.ranks import is_first

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
    def build(cls, config: TrainConfig) -> Run:
        """Read the data's list and make the network; nothing is written."""
        loggers.check_installed(config)
        images = data.load(config.data)
        torch.manual_seed(config.seed)
        net = building.network(config, images)
        inputs = building.input_config(config, net, images)
        loaders = partial(building.loaders, config, images, inputs)
        teacher = make_teacher(config, images.classes, inputs)
        return cls(
            config,
            tasks.Classifier(net, config.model, images.classes, inputs, config.model_args),
            ClassificationModule(net, config, len(images.classes), loaders, teacher),
        )

    def fit(
        self,
        folder: Path,
        *,
        resume: Path | None = None,
        show_progress: bool = True,
        callbacks: Sequence[Callback] = (),
    ) -> TrainResult:
        """Train until the last epoch, from the first or from a checkpoint."""
        if resume is not None:
            _check_readable(resume)
        history = History(
            folder / run_folder.METRICS,
            folder / run_folder.STEPS,
            loggers.run_loggers(self.config, folder),
        )
        judged = replace(self.classifier, model=self.module.judged)
        keep = Checkpoints(folder / run_folder.LAST, folder / run_folder.BEST, judged)
        own: list[Callback] = [history, keep]
        if show_progress and is_first():
            own.append(Progress(history, self.config.batch_size))
        with _quiet(), _interruptible(), others(self.config, folder, resume):
            trainer = Trainer(
                **parallel.place(self.config),
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
            trainer.fit(self.module, ckpt_path=resume, weights_only=True)
        return TrainResult(folder, keep.best_top1, history.rows, list(self.module.broken))


def _check_readable(checkpoint: Path) -> None:
    try:
        torch.load(checkpoint, map_location="meta", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError) as error:
        raise ValueError(f"resume: {checkpoint} is damaged: {error}") from error


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


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C come out as the ``KeyboardInterrupt`` it was.

    Lightning exits with code 1 instead, as from a failure, and leaves Ctrl-C switched off.
    """
    try:
        main_thread_handler = signal.getsignal(signal.SIGINT)
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            signal.signal(signal.SIGINT, main_thread_handler)
            raise KeyboardInterrupt from error
        raise
