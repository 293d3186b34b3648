"""Commands around training: train."""

from __future__ import annotations

from pathlib import Path

from volution import train as training
from volution._support.console import log, out
from volution.cli._common import tell_broken
from volution.train import TrainConfig, TrainResult

__all__ = ["train"]


def train(config: TrainConfig, resume: Path | None = None) -> int:
    """Train a network on images.

    Args:
        config: The settings of the run.
        resume: Continue the run in this folder, with the settings it was begun with.
    """
    try:
        result = training.fit(config) if resume is None else _resume(config, resume)
    except KeyboardInterrupt:
        folder = resume or config.folder
        if (folder / "last.ckpt").exists():
            log.print(f"continue with: volution train --resume {folder}", soft_wrap=True)
        raise
    out.print(f"best top-1 {result.best_top1:.2%}, weights in {result.best}", soft_wrap=True)
    return tell_broken(result.broken)


def _resume(config: TrainConfig, folder: Path) -> TrainResult:
    # What is left at its default was not asked for; anything else would be ignored silently.
    given = {k for k, v in vars(config).items() if v != getattr(TrainConfig(), k)}
    if given:
        raise ValueError(
            f"resume takes the run's own settings; leave out {', '.join(sorted(given))}"
        )
    return training.resume(folder)
