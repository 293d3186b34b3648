"""Commands around training: train."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from volution import train as training
from volution._support.console import log, out
from volution.cli import reporting
from volution.cli._common import tell_broken
from volution.train import Interrupted, TrainConfig
from volution.train.ranks import is_first

__all__ = ["train"]


def train(
    config: TrainConfig,
    resume: Path | None = None,
    overwrite: bool = False,
    *,
    given: Collection[str] = (),
) -> int:
    """Train a network on images; the same command again continues where a run was interrupted.

    Args:
        config: The settings of the run.
        resume: Continue the run in this folder, with the settings it was begun with; those that
            say where and how carefully it computes may be given anew.
        overwrite: Begin anew where the folder holds a run already.
        given: Names of the settings that were not left at their defaults.
    """
    if resume is not None and overwrite:
        raise ValueError("overwrite begins anew and resume goes on; give one of them")
    folder = resume or config.folder
    try:
        if resume is None:
            result = training.fit(config, overwrite=overwrite)
        else:
            changes = {name: getattr(config, name) for name in given}
            result = training.resume(resume, changes=changes)
    except Interrupted as stop:
        _tell_how_to_continue(folder)
        return stop.exit_code
    except KeyboardInterrupt:
        _tell_how_to_continue(folder)
        raise
    if not is_first():
        return 0
    out.print(f"best top-1 {result.best_top1:.2%}, weights in {result.best}", soft_wrap=True)
    reporting.after_training(result.folder)
    return tell_broken(result.broken)


def _tell_how_to_continue(folder: Path) -> None:
    if is_first() and training.can_resume(folder):
        log.print(f"continue with: volution train --resume {folder}", soft_wrap=True)
