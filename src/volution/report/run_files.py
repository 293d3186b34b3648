"""What a run's folder says of the run, whether it is finished, broken off or going on."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from volution.train import TrainConfig
from volution.train import folder as run_folder
from volution.train.config import read_config
from volution.train.rows import read_rows
from volution.train.runstate import is_held

__all__ = ["RunFiles", "find_runs", "is_run", "read_run"]

State = Literal["finished", "interrupted", "running"]


@dataclass(frozen=True)
class RunFiles:
    """A run as its folder shows it.

    Args:
        folder: The folder.
        config: The run's settings.
        history: One row for each epoch that was completed.
        steps: The training loss within epochs.
        environment: What it was begun with; empty if that is not known.
        state: Whether it is finished, broken off or going on.
        changed: When its numbers last changed.
    """

    folder: Path
    config: TrainConfig
    history: list[dict[str, float]]
    steps: list[dict[str, float]]
    environment: dict[str, Any] = field(default_factory=dict)
    state: State = "interrupted"
    changed: datetime = datetime.min

    @property
    def best(self) -> dict[str, float] | None:
        """The epoch of the highest accuracy; None before the first."""
        measured = [row for row in self.history if math.isfinite(row["val_top1"])]
        return max(measured, key=lambda row: row["val_top1"], default=None)

    @property
    def weights(self) -> Path:
        """Where the best weights are, if there are some."""
        return self.folder / run_folder.BEST

    @property
    def seconds(self) -> float:
        """Time that the epochs took."""
        return sum(row["seconds"] for row in self.history)

    @property
    def images_per_second(self) -> float:
        """Throughput of the training, the median of all epochs; NaN before the first."""
        rates = sorted(row["images_per_second"] for row in self.history)
        return rates[len(rates) // 2] if rates else float("nan")


def is_run(folder: Path) -> bool:
    """Return whether a folder holds a run."""
    return (folder / run_folder.CONFIG).is_file()


def read_run(folder: str | os.PathLike[str]) -> RunFiles:
    """Read what a run's folder says.

    Args:
        folder: The run's folder.

    Raises:
        FileNotFoundError: If it holds no run.
        ValueError: If a file of it is damaged.
    """
    folder = Path(folder)
    if not is_run(folder):
        raise FileNotFoundError(f"no run at {folder} (no {run_folder.CONFIG} in it)")
    config = read_config(folder / run_folder.CONFIG)
    history = _read(folder / run_folder.METRICS, "epoch", "val_top1", "seconds")
    steps = _read(folder / run_folder.STEPS, "epoch", "lr", "train_loss")
    state: State = "interrupted"
    if is_held(folder / run_folder.STEPS):
        state = "running"
    elif history and history[-1]["epoch"] >= config.epochs:
        state = "finished"
    return RunFiles(folder, config, history, steps, _environment(folder), state, _changed(folder))


def find_runs(root: Path) -> list[Path]:
    """Return the folders below a root that hold runs, in the order of their names.

    Raises:
        FileNotFoundError: If there is no such folder.
    """
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise FileNotFoundError(f"root: the folder {root} {what}; give the folder of your runs")
    return sorted(path.parent for path in root.rglob(run_folder.CONFIG) if path.is_file())


def _read(path: Path, *names: str) -> list[dict[str, float]]:
    rows = read_rows(path)
    missing = [name for name in names if rows and name not in rows[0]]
    if missing:
        raise ValueError(f"{path} has no column {', '.join(missing)}")
    return rows


def _environment(folder: Path) -> dict[str, Any]:
    path = folder / run_folder.ENVIRONMENT
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict) or not {"machine", "versions"} <= found.keys():
        raise ValueError(f"{path} is damaged: it names no machine and no versions")
    return found


def _changed(folder: Path) -> datetime:
    names = (run_folder.CONFIG, run_folder.METRICS, run_folder.STEPS)
    times = [(folder / name).stat().st_mtime for name in names if (folder / name).is_file()]
    return datetime.fromtimestamp(max(times))
