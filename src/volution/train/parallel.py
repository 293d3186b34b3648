"""Where a run computes: devices, machines, precision, in Lightning's words."""

from __future__ import annotations

from typing import Any

from volution.train.config import TrainConfig

__all__ = ["place"]


def place(config: TrainConfig) -> dict[str, Any]:
    """Return the arguments of Lightning's ``Trainer`` that say where and how it computes."""
    precisions = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
    return {
        "accelerator": {"cuda": "gpu"}.get(config.device, config.device),
        "devices": config.devices,
        "num_nodes": config.nodes,
        "strategy": config.strategy,
        "precision": precisions[config.precision],
    }
