"""Start or continue a run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volution._support.console import log
from volution._support.extras import needs
from volution.train import folder as run_folder
from volution.train.config import TrainConfig
from volution.train.ranks import in_place, is_first

if TYPE_CHECKING:
    from lightning.pytorch import Callback

__all__ = ["TrainResult", "can_resume", "fit", "resume"]


@dataclass(frozen=True)
class TrainResult:
    """What came of a run.

    Args:
        folder: Where it lies.
        best_top1: Highest share of validation images that were right after an epoch.
        history: One row for each epoch, as in ``metrics.csv``.
        broken: Images that could not be read, and why; they were skipped.
    """

    folder: Path
    best_top1: float
    history: list[dict[str, float]]
    broken: list[str] = field(default_factory=list)

    @property
    def best(self) -> Path:
        """The weights after the best epoch."""
        return self.folder / run_folder.BEST


def fit(
    config: TrainConfig,
    *,
    overwrite: bool = False,
    show_progress: bool = True,
    callbacks: Sequence[Callback] = (),
) -> TrainResult:
    """Train a network, or go on with a run of the same settings in the same folder.

    The same settings give the same weights on the same machine, however often the run was
    interrupted. A run that is finished is left as it is.

    Args:
        config: What to do.
        overwrite: Take the place of an earlier run in the same folder.
        show_progress: Show a progress bar and a line for each epoch.
        callbacks: Callbacks of Lightning to run besides volution's own.

    Returns:
        What came of it. The folder then holds ``config.yaml``, ``environment.json``,
        ``metrics.csv``, ``best.safetensors`` and, to continue from, ``checkpoints/``.

    Raises:
        ValueError: If a setting cannot work, or the folder holds a run with other settings or
            cannot be written; nothing was written then.
        TrainingError: If the run had to stop; the message says where it can continue.
        Interrupted: If a signal asked it to stop; its state was saved.
        MissingExtra: If Lightning is not installed.
    """
    with needs("train"):
        from volution.train import engine, parallel
    config = in_place(config)
    config.check()
    if not overwrite and run_folder.holds_run(config.folder):
        start = parallel.decided_by_first(run_folder.begin, config)
        return _continue(config, start, show_progress, callbacks)
    # All that can fail on bad settings comes before the folder is touched.
    run = engine.Run.build(config, show_progress=show_progress)
    start = parallel.decided_by_first(run_folder.begin, config, overwrite=overwrite)
    return run.fit(start.folder, show_progress=show_progress, callbacks=callbacks)


def resume(
    folder: str | os.PathLike[str],
    *,
    changes: Mapping[str, Any] | None = None,
    show_progress: bool = True,
    callbacks: Sequence[Callback] = (),
) -> TrainResult:
    """Continue a run from its last good state, to the result it would have had.

    Args:
        folder: The run's folder, with its ``config.yaml`` and ``checkpoints/``.
        changes: Settings for the rest of the run; only such as say where and how carefully it
            computes may differ (``volution.train.config.PLACE``).
        show_progress: As in :func:`fit`.
        callbacks: As in :func:`fit`.

    Raises:
        FileNotFoundError: If there is no such run.
        ValueError: If its files are damaged, or a setting may not change.
        TrainingError: As in :func:`fit`, like the next two.
        Interrupted: As above.
        MissingExtra: As above.
    """
    with needs("train"):
        from volution.train import parallel
    config, start = parallel.decided_by_first(run_folder.proceed, Path(folder), changes)
    config = in_place(config)
    config.check()
    return _continue(config, start, show_progress, callbacks)


def can_resume(folder: str | os.PathLike[str]) -> bool:
    """Return whether a folder holds a run with a saved state.

    Example:
        >>> can_resume("runs/none")
        False
    """
    return run_folder.holds_run(Path(folder)) and run_folder.has_state(Path(folder))


def _continue(
    config: TrainConfig,
    start: run_folder.Start,
    show_progress: bool,
    callbacks: Sequence[Callback],
) -> TrainResult:
    from volution.train import engine

    if start.finished:
        if show_progress and is_first():
            text = f"{start.folder} is finished, all {config.epochs} epochs of it"
            log.print(text, markup=False, soft_wrap=True)
        return engine.finished(start)
    if start.state is not None:
        # All weights come from the state; the file they started from may be gone.
        config = replace(config, weights=None, pretrained=False)
    return engine.Run.build(config, show_progress=show_progress).fit(
        start.folder, resume=start.state, show_progress=show_progress, callbacks=callbacks
    )
