"""The run's folder: what lies in it, and whether it can be written at all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from volution._support.environment import environment
from volution.train.config import TrainConfig, write_config

__all__ = ["BEST", "CONFIG", "ENVIRONMENT", "LAST", "METRICS", "STEPS", "prepare"]

CONFIG = "config.yaml"
METRICS = "metrics.csv"
STEPS = "steps.csv"
ENVIRONMENT = "environment.json"
LAST = "last.ckpt"
BEST = "best.safetensors"


def prepare(config: TrainConfig, *, overwrite: bool = False) -> Path:
    """Make the folder of a new run and write down what is going to happen.

    Args:
        config: The run's settings.
        overwrite: Take the place of an earlier run; otherwise that is an error.

    Returns:
        The folder.

    Raises:
        ValueError: If it holds a run already, or cannot be written.
    """
    folder = config.folder
    if (folder / CONFIG).exists() and not overwrite:
        raise ValueError(
            f"out: {folder} holds a run already; continue it with --resume {folder}, or choose "
            f"another folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (METRICS, LAST, BEST):
            (folder / name).unlink(missing_ok=True)
        write_config(replace(config, out=folder), folder / CONFIG)
        (folder / ENVIRONMENT).write_text(json.dumps(environment(), indent=2) + "\n")
    except OSError as error:
        raise ValueError(f"out: cannot write to {folder}: {error.strerror or error}") from error
    return folder
