"""The run's folder: what lies in it, whether a run in it goes on, and whether it can be written."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from volution._support.console import log
from volution._support.environment import environment
from volution._support.files import write_whole
from volution.train.config import PLACE, TrainConfig, read_config, write_config
from volution.train.runstate import refuse_held
from volution.train.store import Store

__all__ = [
    "BEST",
    "CHECKPOINTS",
    "CONFIG",
    "ENVIRONMENT",
    "METRICS",
    "STEPS",
    "Start",
    "begin",
    "has_state",
    "holds_run",
    "proceed",
]

CONFIG = "config.yaml"
METRICS = "metrics.csv"
STEPS = "steps.csv"
ENVIRONMENT = "environment.json"
CHECKPOINTS = "checkpoints"
BEST = "best.safetensors"


@dataclass(frozen=True)
class Start:
    """From where a run starts.

    Args:
        folder: The run's folder.
        state: File of the state it continues from; None for the beginning.
        finished: Whether that state is already the end.
    """

    folder: Path
    state: Path | None = None
    finished: bool = False


def holds_run(folder: Path) -> bool:
    """Return whether a run was begun in a folder."""
    return (folder / CONFIG).exists()


def has_state(folder: Path) -> bool:
    """Return whether a run in a folder has a saved state, sound or not."""
    try:
        return bool(Store(folder / CHECKPOINTS).states())
    except ValueError:
        return False


def begin(config: TrainConfig, *, overwrite: bool = False) -> Start:
    """Look whether a run is in its folder already; make the folder of one that is not.

    Args:
        config: The run's settings.
        overwrite: Take the place of what is there.

    Raises:
        ValueError: If the folder holds a run with other settings, or with damaged states only, or
            cannot be written.
    """
    folder = config.folder
    refuse_held(folder / STEPS)
    if holds_run(folder) and not overwrite:
        _refuse_others(config, folder)
        start = _newest(config, folder)
        if start.state is not None:
            return start
    try:
        folder.mkdir(parents=True, exist_ok=True)
        Store(folder / CHECKPOINTS).clear()
        for name in (METRICS, STEPS, BEST):
            (folder / name).unlink(missing_ok=True)
        write_whole(folder / ENVIRONMENT, json.dumps(environment(), indent=2) + "\n")
        # The last of all: a folder with it is a run's.
        unfinished = folder / f".{CONFIG}.unfinished"
        write_config(replace(config, out=folder), unfinished)
        os.replace(unfinished, folder / CONFIG)
    except OSError as error:
        raise ValueError(f"out: cannot write to {folder}: {error.strerror or error}") from error
    return Start(folder)


def proceed(folder: Path, changes: Mapping[str, Any] | None = None) -> tuple[TrainConfig, Start]:
    """Return the settings of a run that is there, and from where it continues.

    Args:
        folder: The run's folder.
        changes: Settings that are given with it; those of :data:`PLACE` may differ from the run's.

    Raises:
        FileNotFoundError: If there is no such run.
        ValueError: If its files are damaged, or another setting differs.
    """
    if not holds_run(folder):
        raise FileNotFoundError(f"resume: no run at {folder} (no {CONFIG} in it)")
    refuse_held(folder / STEPS)
    own = replace(read_config(folder / CONFIG), out=folder)
    config = replace(own, **(changes or {}))
    if config.folder.resolve() != folder.resolve():
        raise ValueError(
            f"resume: the run stays in {folder}; leave out = {config.folder} out, or move the "
            f"folder and resume it there"
        )
    config = replace(config, out=folder)
    differing = _differing(own, config)
    if differing:
        raise ValueError(
            f"resume takes the run's own settings; leave out {', '.join(differing)}, or start "
            f"another run"
        )
    start = _newest(config, folder)
    if start.state is None:
        log.print(f"{folder} has no saved state yet; it starts from the beginning", soft_wrap=True)
    return config, start


def _newest(config: TrainConfig, folder: Path) -> Start:
    store = Store(folder / CHECKPOINTS)
    store.tidy()
    state = store.newest(lambda text: log.print(text, markup=False, soft_wrap=True))
    if state is None:
        return Start(folder)
    return Start(folder, store.path(state), finished=state.epoch >= config.epochs)


def _refuse_others(config: TrainConfig, folder: Path) -> None:
    differing = _differing(read_config(folder / CONFIG), config)
    if differing:
        raise ValueError(
            f"out: {folder} holds a run with other settings: {', '.join(differing)}; give it the "
            f"same to continue, choose another out, or overwrite it"
        )


def _differing(there: TrainConfig, here: TrainConfig) -> list[str]:
    """Return what differs between two runs and may not, with both values."""
    return [
        f"{name} ({_plain(old)} there, {_plain(new)} here)"
        for name in (field.name for field in fields(TrainConfig) if field.name not in PLACE)
        if _plain(old := getattr(there, name)) != _plain(new := getattr(here, name))
    ]


def _plain(value: object) -> str:
    # As a file of settings has it: without the difference between lists and tuples.
    return json.dumps(value, default=str, sort_keys=True) if isinstance(value, dict) else str(value)
