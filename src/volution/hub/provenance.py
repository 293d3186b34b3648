"""What is known of how weights came to be: from the file itself, and from its run's folder."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import yaml

__all__ = ["Provenance", "read_provenance"]

_CONFIG, _ENVIRONMENT, _METRICS = "config.yaml", "environment.json", "metrics.csv"
# What the file says of the network rather than of how it was made.
_OF_THE_NETWORK = frozenset({"model", "model_args", "classes", "input", "format"})
# True of one machine only, or nobody's business.
_PRIVATE = frozenset({"out", "device", "workers", "wandb", "tensorboard", "check_data"})


@dataclass(frozen=True)
class Provenance:
    """How weights came to be; empty where it is not known.

    Args:
        remarks: What the file's metadata says beside the network.
        metrics: The row of the run's ``metrics.csv`` after which the weights were written.
        settings: The run's settings, without what names a machine's folders.
        environment: Versions, commit and machine of the run.
    """

    remarks: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)


def read_provenance(weights: str | os.PathLike[str]) -> Provenance:
    """Gather what is known of weights.

    Args:
        weights: The file; if it lies in a run's folder, what the run left there counts as well.

    Raises:
        ValueError: If a file of the run is damaged.
    """
    weights = Path(weights)
    remarks = _remarks(weights)
    run = weights.parent
    if not (run / _CONFIG).is_file():
        return Provenance(remarks)
    try:
        settings = yaml.safe_load((run / _CONFIG).read_text(encoding="utf-8")) or {}
        environment = {}
        if (run / _ENVIRONMENT).is_file():
            environment = json.loads((run / _ENVIRONMENT).read_text(encoding="utf-8"))
        metrics = _metrics(run / _METRICS, remarks.get("epoch"))
    except (yaml.YAMLError, json.JSONDecodeError, csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"the run at {run} has a damaged file: {error}") from error
    return Provenance(remarks, metrics, _public(settings), environment)


def _remarks(weights: Path) -> dict[str, str]:
    try:
        with safetensors.safe_open(weights, framework="pt") as file:
            found = dict(file.metadata() or {})
    except (safetensors.SafetensorError, OSError):
        return {}  # of another format, which has no place for remarks
    return {key: value for key, value in found.items() if key not in _OF_THE_NETWORK}


def _metrics(path: Path, epoch: str | None) -> dict[str, float]:
    if not path.is_file() or epoch is None:
        return {}
    found: dict[str, float] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            numbers = {key: _number(value) for key, value in row.items() if key is not None}
            if numbers.get("epoch") == float(epoch):
                # The last of them: a run may write several rows for an epoch.
                found.update({k: v for k, v in numbers.items() if v is not None})
    return found


def _number(text: Any) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def _public(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without a machine's folders; of a path its last part remains."""
    kept = {k: v for k, v in settings.items() if k not in _PRIVATE and v is not None}
    return {
        key: _last_part(value) if isinstance(value, str) else value for key, value in kept.items()
    }


def _last_part(text: str) -> str:
    kind, colon, place = text.partition(":")
    if kind in ("hf", "hf-hub") or not ("/" in text or "\\" in text):
        return text
    if not colon or len(kind) == 1:  # a plain path, perhaps with a drive's letter
        kind, colon, place = "", "", text
    return f"{kind}{colon}{place.replace(chr(92), '/').rstrip('/').rpartition('/')[2]}"
