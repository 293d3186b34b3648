"""Further places that a run's numbers go to: TensorBoard and Weights & Biases."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from volution._support.console import log
from volution._support.extras import needs
from volution.train.config import TrainConfig

__all__ = ["RunLogger", "TensorBoard", "WeightsAndBiases", "check_installed", "run_loggers"]


class RunLogger(Protocol):
    """Takes numbers of a run; used in one process only."""

    def open(self, *, step: int | None, written: int) -> None:
        """Begin.

        Args:
            step: The step that a resumed run goes on from; None for a new run.
            written: The last step that was written before the run was interrupted.

        Raises:
            ValueError: If that is not possible.
        """
        ...

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take numbers by their names; steps never go down."""
        ...

    def flush(self) -> None:
        """Bring to the disk what was written so far, if that is where it goes."""
        ...

    def close(self, *, failed: bool) -> None:
        """Write what is waiting and let go of everything."""
        ...


def run_loggers(config: TrainConfig, folder: Path) -> list[RunLogger]:
    """Return the loggers that a run's settings ask for.

    Args:
        config: The settings.
        folder: The run's folder.
    """
    loggers: list[RunLogger] = []
    if config.tensorboard:
        loggers.append(TensorBoard(folder))
    if config.wandb is not None:
        loggers.append(WeightsAndBiases(config, folder))
    return loggers


def check_installed(config: TrainConfig) -> None:
    """Raise ``MissingExtra`` if a logger that a run asks for is not installed."""
    if config.tensorboard:
        with needs("train"):
            import tensorboard  # type: ignore[import-untyped]  # noqa: F401 - torch's own message would not name the extra
    if config.wandb is not None:
        with needs("wandb"):
            import wandb  # noqa: F401


class TensorBoard:
    """Events in the run's folder, for ``tensorboard --logdir runs``.

    Args:
        folder: The run's folder; the events go to ``tensorboard/`` in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "tensorboard"

    def open(self, *, step: int | None, written: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if step is None:
            for old in self.folder.glob("events.out.tfevents.*"):
                old.unlink()
        # Events of steps that come again after a resumption are taken out by their readers.
        purge = None if step is None else step + 1
        self._writer = SummaryWriter(str(self.folder), purge_step=purge)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self, *, failed: bool) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run on Weights & Biases, or a file to upload later where ``WANDB_MODE`` is offline.

    Args:
        config: The settings, which are uploaded, but for the run's folder and file of weights.
        folder: The run's folder; the run's id is kept there, in ``wandb/id``.
    """

    def __init__(self, config: TrainConfig, folder: Path) -> None:
        self.config = config
        self.folder = folder
        self._id = folder / "wandb" / "id"
        self._first = 0

    def open(self, *, step: int | None, written: int) -> None:
        import wandb

        resumed = step is not None and self._id.is_file()
        name = self._id.read_text().strip() if resumed else secrets.token_hex(4)
        settings = {k: v for k, v in asdict(self.config).items() if not isinstance(v, Path)}
        try:
            self._id.parent.mkdir(parents=True, exist_ok=True)
            self._run = wandb.init(
                project=self.config.wandb,
                name=self.folder.name,
                id=name,
                resume="allow",
                dir=str(self.folder),
                config=settings,
                # Its copy of what is printed would have the progress bar in it.
                settings=wandb.Settings(console="off", silent=True),
            )
        except (wandb.Error, OSError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"wandb: cannot log to project {self.config.wandb!r}: {reason}; log in with "
                f"`wandb login`, set WANDB_MODE=offline, or leave the option out"
            ) from error
        self._id.write_text(f"{name}\n")
        # Steps that come again after a resumption are there already, and are the same.
        self._first = max(int(self._run.step), written) if resumed else 0
        offline = f"{self._id.parent}, upload with: wandb sync {self._id.parent}/offline-run-*"
        where = offline if self._run.offline else self._run.url
        log.print(f"Weights & Biases: {where}", markup=False, soft_wrap=True)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if step >= self._first:
            self._run.log(dict(values), step=step)

    def flush(self) -> None:
        pass  # a process of its own writes

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))
