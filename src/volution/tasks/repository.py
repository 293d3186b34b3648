"""A classifier as a folder in the layout of timm and the Hugging Face Hub.

The folder holds the weights (``model.safetensors``), what they are (``config.json``, in timm's
schema, so that ``timm.create_model("local-dir:FOLDER", pretrained=True)`` makes the same network)
and a card for people (``README.md``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from volution.data import InputConfig
from volution.hub.transfer import CONFIG

__all__ = ["Description", "config_of", "read_description"]

_OF_THE_NETWORK = (
    "pool_size",
    "first_conv",
    "classifier",
    "origin_url",
    "paper_name",
    "paper_ids",
)


@dataclass(frozen=True)
class Description:
    """What weights are of: all of a classifier but its weights.

    Args:
        name: The network's name in timm.
        classes: Names of the classes, in the order of its outputs.
        input: How its images are prepared.
        model_args: Arguments it was made with, beyond ``num_classes`` and ``in_chans``.
    """

    name: str
    classes: tuple[str, ...]
    input: InputConfig
    model_args: dict[str, Any] = field(default_factory=dict)


def config_of(
    described: Description, model: nn.Module, *, license: str | None = None
) -> dict[str, Any]:
    """Return the ``config.json`` of a classifier, in timm's schema.

    Args:
        described: What the weights are of.
        model: The network.
        license: The weights' licence, if it is known.

    Raises:
        ValueError: If an argument of the network cannot be written as JSON.
    """
    cfg: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    wanted = described.input
    side = wanted.image_size
    own_size = tuple(cfg.get("input_size", ()))[1:] == (side, side)
    config: dict[str, Any] = {
        "architecture": described.name,
        "num_classes": len(described.classes),
        "num_features": int(model.num_features),  # type: ignore[arg-type]
        "label_names": list(described.classes),
        "model_args": described.model_args,
        "pretrained_cfg": {
            **{name: cfg[name] for name in _OF_THE_NETWORK if cfg.get(name) is not None},
            **({"license": license} if license else {}),
            "custom_load": False,
            "num_classes": len(described.classes),
            "input_size": [wanted.channels, side, side],
            "fixed_input_size": bool(cfg.get("fixed_input_size", False)),
            "interpolation": wanted.interpolation,
            "crop_pct": wanted.crop_pct,
            "crop_mode": wanted.crop_mode,
            "mean": list(wanted.mean),
            "std": list(wanted.std),
        },
    }
    if not own_size:
        config["pretrained_cfg"].pop("pool_size", None)
    try:
        json.dumps(config)
    except TypeError as error:
        raise ValueError(f"model_args of {described.name} cannot be written: {error}") from error
    return config


def read_description(folder: Path) -> Description:
    """Read what the weights of a folder are of, from its ``config.json``.

    Raises:
        ValueError: If the file is damaged or does not say it.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        # Older repositories of timm have one level.
        cfg = {**config, **config.get("pretrained_cfg", {})}
        count = int(config.get("num_classes", cfg.get("num_classes", 1000)))
        names = config.get("label_names") or cfg.get("label_names") or cfg.get("labels")
        size = cfg["input_size"]
        wanted = InputConfig(
            channels=int(size[0]),
            image_size=int(size[-1]),
            mean=tuple(float(value) for value in cfg["mean"]),
            std=tuple(float(value) for value in cfg["std"]),
            interpolation=str(cfg.get("interpolation", "bicubic")),
            crop_pct=float(cfg.get("crop_pct", 0.875)),
            crop_mode=str(cfg.get("crop_mode", "center")),
        )
        args = dict(config.get("model_args") or {})
        # Both are said by the classes and the input.
        for known in ("num_classes", "in_chans"):
            args.pop(known, None)
        return Description(str(config["architecture"]), _names(names, count), wanted, args)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise ValueError(f"{path} does not describe a classifier of timm's: {error!r}") from error


def _names(names: Any, count: int) -> tuple[str, ...]:
    if not names:
        return tuple(str(i) for i in range(count))
    if isinstance(names, dict):
        return tuple(str(names.get(str(i), i)) for i in range(count))
    if len(names) != count:
        raise ValueError(f"{len(names)} label_names for {count} classes")
    return tuple(str(name) for name in names)
