"""Start or continue a run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from volution._support.extras import needs
from volution.train import folder as run_folder
from volution.train.config import TrainConfig, read_config
from volution.train.ranks import in_place

if TYPE_CHECKING:
    from lightning.pytorch import Callback

__all__ = ["TrainResult", "fit", "resume"]


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
    """Train a network, from the beginning.

    The same settings give the same weights on the same machine.

    Args:
        config: What to do.
        overwrite: Take the place of an earlier run in the same folder.
        show_progress: Show a progress bar and a line for each epoch.
        callbacks: Callbacks of Lightning to run besides volution's own.

    Returns:
        What came of it. The folder then holds ``config.yaml``, ``environment.json``,
        ``metrics.csv``, ``best.safetensors`` and, to continue from, ``last.ckpt``.

    Raises:
        ValueError: If a setting cannot work, or the folder holds a run or cannot be written;
            nothing was written then.
        MissingExtra: If Lightning is not installed.
    """
    with needs("train"):
        from volution.train import engine, parallel
    config = in_place(config)
    config.check()
    # All that can fail on bad settings comes before the folder is touched.
    run = engine.Run.build(config)
    folder = parallel.decided_by_first(run_folder.prepare, config, overwrite=overwrite)
    return run.fit(folder, show_progress=show_progress, callbacks=callbacks)


def resume(
    folder: str | os.PathLike[str],
    *,
    show_progress: bool = True,
    callbacks: Sequence[Callback] = (),
) -> TrainResult:
    """Continue a run after its last complete epoch, to the result it would have had.

    Args:
        folder: The run's folder, with its ``config.yaml`` and ``last.ckpt``.
        show_progress: As in :func:`fit`.
        callbacks: As in :func:`fit`.

    Raises:
        FileNotFoundError: If there is no such run.
        ValueError: If its files are damaged.
        MissingExtra: If Lightning is not installed.
    """
    folder = Path(folder)
    if not (folder / run_folder.CONFIG).is_file():
        raise FileNotFoundError(f"resume: no run at {folder} (no {run_folder.CONFIG} in it)")
    config = in_place(read_config(folder / run_folder.CONFIG))
    last = folder / run_folder.LAST
    if not last.is_file():
        raise FileNotFoundError(
            f"resume: {folder} has no {last.name}, its first epoch was not completed; start again"
        )
    with needs("train"):
        from volution.train import engine
    config.check()
    # All weights come from the checkpoint; the file they started from may be gone.
    run = engine.Run.build(replace(config, weights=None))
    return run.fit(folder, resume=last, show_progress=show_progress, callbacks=callbacks)
